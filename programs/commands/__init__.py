"""What a person calls from a shell: each command is a function of one dataclass, its options. Source: ours."""
