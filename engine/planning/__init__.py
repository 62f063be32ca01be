"""Planning: a run's needs and its place, known before anything starts."""
