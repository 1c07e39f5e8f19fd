def runs(): "X."
show=report=export=compilers=runs
