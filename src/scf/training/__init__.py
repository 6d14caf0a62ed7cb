"""Training jobs and checkpoints."""
