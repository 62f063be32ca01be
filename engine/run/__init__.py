"""A run from its configuration to its result: rounds, checkpoints, resume, replay."""
