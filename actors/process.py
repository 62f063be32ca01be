"""A process of ours: its kernels, its peak of memory, and what it does with memory that torch has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import psutil

from clusters import bits

KEPT_MB = 256
"""Freed memory at the end of its heap that a process keeps at most, in MiB."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, by their numbers in malloc.h."""

_LARGEST_IN_HEAP = 2**25
"""Bytes of a block that is still taken from the heap: the most that glibc allows."""


def keep_freed_memory() -> None:
    """Use freed memory again, up to `KEPT_MB`; a process's peak is as before.

    Of itself, glibc gives the end of the heap back to the system whenever large tensors are freed, and takes it anew
    for the next ones, page by page. Without glibc nothing is done.
    """
    if sys.platform == "win32":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_MB * 2**20)
        # Setting the one fixes the other at 128 KiB, above which every block would be mapped anew.
        mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)


def take_huge_pages() -> None:
    """Ask the system for huge pages where torch takes memory for large tensors (2 MiB and more).

    To fill fresh small pages takes five times as long as the copy that fills them. torch reads this when it takes
    memory for the first time; on systems without huge pages nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def set_kernels(level: bits.Bits = "native") -> None:
    """Have torch compute here as the process was started to, natively or portably.

    torch gives convolutions and recurrences to oneDNN or NNPACK, which size their blocks, and so their sums, by the
    processor's caches. Without them torch's own kernels and MKL do the work, which do not.

    Raises:
        bits.BitsError: portable bits are asked, and this process or machine cannot compute them.
    """
    bits.require(level)
    if os.environ.get(bits.MARK) == bits.PORTABLE[bits.MARK]:
        import torch  # late, because processes that compute nothing import this file

        torch.backends.mkldnn.set_flags(False)
        torch.backends.nnpack.set_flags(False)


def peak_rss_mb() -> float:
    """Peak memory of this process so far, in MiB; pages of the object store that it maps included."""
    status = Path("/proc/self/status")
    if status.exists():
        # What `getrusage` says has been handed down from the process that started this one, where that was larger.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # on Windows, which keeps the peak among what it knows of a process
        memory = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
