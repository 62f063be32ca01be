"""A run's folder on disk: tables, checkpoints, journal."""
