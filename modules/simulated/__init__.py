"""The parts of the simulated optimizer: reading a request, inferring its task, the wordings, one writer each."""
