"""Jobs that worker processes can import."""

from __future__ import annotations

import os
from pathlib import Path

LOOKS = 2000


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


def count_others(shared, store, tell):
    """The most jobs under way at once, this one among them, while this one asked the store again and again."""
    place = Path(shared["folder"]) / str(os.getpid())
    place.touch()
    most = 0
    for _ in range(LOOKS):
        store.get("key")
        most = max(most, len(list(place.parent.iterdir())))
    place.unlink()
    return most
