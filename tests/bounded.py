"""A group of processes whose memory the kernel bounds (a cgroup): it kills who would take more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT = 64 * 2**20
"""Bytes that a group may take."""

ROOT = Path("/sys/fs/cgroup")

FIRST, SECOND = ("memory.limit_in_bytes", "memory.oom_control"), ("memory.max", "memory.events")
"""Files with the bound and with the number of the killed, of the kernel's two versions of groups."""


@dataclass(frozen=True)
class Group:
    """A group that may take `LIMIT` bytes; who enters brings nothing of what it has already."""

    folder: Path

    def enter(self) -> None:
        """Put this process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def killed(self) -> int:
        """The number of its processes that the kernel has killed."""
        file = next(file for _, name in (FIRST, SECOND) if (file := self.folder / name).exists())
        counts = dict(line.split() for line in file.read_text().splitlines())
        return int(counts["oom_kill"])


@contextmanager
def bounded() -> Iterator[Group]:
    """A group, gone after the block, when nobody is in it any more.

    Raises:
        OSError: this machine lets nobody make one.
    """
    first = ROOT / "memory"
    folder = (first if first.exists() else ROOT) / f"tessera-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / (FIRST if first.exists() else SECOND)[0]).write_text(str(LIMIT))
        yield Group(folder)
    finally:
        folder.rmdir()


def why_not() -> str:
    """The reason why no group can be made here; empty where it can."""
    if sys.platform != "linux":
        return "groups with a bound on memory are Linux's"
    try:
        with bounded() as group:
            group.killed()
    except (OSError, StopIteration, KeyError) as error:
        return f"no group of processes with a bound on memory can be made here: {error!r}"
    return ""
