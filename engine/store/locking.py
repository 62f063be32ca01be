"""Locks between processes, also on disks that know no flock (Lustre without it, some NFS)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout


class Busy(Exception):
    """Another process holds the lock.

    Attributes:
        holder: of a disk without flock, the process and machine that made the lock's file, in words; else "".
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def locked_by_us(path: Path, seconds: float = 0) -> Iterator[None]:
    """A block that one process at a time performs.

    The kernel releases the lock however the process ends. On a disk without flock the file's existence is the lock: one
    that a process of this machine left behind when it was killed counts no more, that of another machine does.

    Args:
        path: of the lock's file, in a folder that exists.
        seconds: to wait for others.

    Raises:
        Busy: another process holds it.
        OSError: the file cannot be made.
    """
    lock = _acquire(path, seconds)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, seconds: float) -> BaseFileLock:
    lock: BaseFileLock = (FileLock if _knows_flock(path.parent) else SoftFileLock)(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise Busy(_holder(path)) from error
    return lock


def _knows_flock(folder: Path) -> bool:
    """Whether the disk of a folder answers flock; True where Python has none, and the library takes another way."""
    try:
        import fcntl
    except ImportError:
        return True
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _holder(path: Path) -> str:
    """The process that holds a soft lock, whose file has its number and the name of its machine, a line each."""
    try:
        process, machine = path.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return ""
    return f"process {process} on {machine}"
