"""How the embedded model was made, and what lets the simulated optimizer answer dspy's own optimizers."""
