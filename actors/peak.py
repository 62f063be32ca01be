"""The largest resident memory of a process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Of this process so far, in MiB; pages of the object store that it maps included."""
    status = Path("/proc/self/status")
    if status.exists():
        # What `getrusage` says has been handed down from the process that started this one, where that was larger.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
