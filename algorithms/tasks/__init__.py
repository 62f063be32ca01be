"""Tasks, the learning problems: one file each, found by file name."""
