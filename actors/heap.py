"""What a process of ours does with memory that torch has freed."""

from __future__ import annotations

import ctypes

KEPT_MB = 256
"""Freed memory at the end of its heap that a process keeps at most, in MiB."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""

_LARGEST_IN_HEAP = 2**25
"""Bytes of a block that is still taken from the heap: the most that glibc allows."""


def keep_freed_memory() -> None:
    """Use freed memory again, up to `KEPT_MB`; a process's peak is as before.

    Of itself, glibc gives the end of the heap back to the system whenever large tensors are freed, and takes it anew
    for the next ones, page by page. Without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_MB * 2**20)
        # Setting the one fixes the other at 128 KiB, above which every block would be mapped anew.
        mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
