"""The parts of `cuesmith align-study`: its statistics, its four configurations, its toy, its report."""
