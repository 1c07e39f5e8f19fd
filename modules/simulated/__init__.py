"""The parts of the simulated optimizer: reading a request, the evidence in it, the wordings, one writer each."""
