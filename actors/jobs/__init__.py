"""Whole runs as Ray tasks, side by side."""
