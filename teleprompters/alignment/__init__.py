"""Align-Pro: a trained prompter in front of a frozen program, with the theory as its yardstick (2501.03486)."""
