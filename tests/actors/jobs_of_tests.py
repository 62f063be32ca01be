"""Jobs that worker processes can import."""

from __future__ import annotations

import os


def fetch(shared, store, tell):
    """Fetch what another job of the group kept, and what all share."""
    tell("looking")
    kept = store.get("key")
    return shared["number"], None if kept is None else kept.decode()


def keep(shared, store, tell):
    """Keep something for the others."""
    store.put("key", b"kept")
    return os.getpid()


def fail(shared, store, tell):
    raise ValueError("sour grapes")


def die(shared, store, tell):
    os._exit(3)
