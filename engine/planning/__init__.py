"""What a run would need and where it would run, before anything starts."""
