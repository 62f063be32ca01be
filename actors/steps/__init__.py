"""One step of a client: its orders, the work, and the vetting and wire form of what comes back."""
