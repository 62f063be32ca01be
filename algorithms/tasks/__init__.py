"""What is learnt: one file a task, found by file name."""
