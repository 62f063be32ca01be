"""Configuration, data, the round loop, what is kept of a run, and the command line."""
