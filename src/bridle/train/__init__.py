"""The training loop, checkpoints and metrics; knows the objective protocol, never a method."""
