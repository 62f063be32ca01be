"""Other simulators of federated learning, on the same work; each in an environment of its own."""
