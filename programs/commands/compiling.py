def compile_program(): "X."
resume=compile_program
