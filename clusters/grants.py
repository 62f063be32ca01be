"""Cores and memory that the machine grants this process, by affinity and cgroup; all there is, where it grants all.

A cgroup is a group of processes with limits of their own: a container, a job of a batch system, a unit of systemd. A
limit of any group above ours holds for us too. Version 2 has one tree of groups, version 1 one for each kind of limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("sys/fs/cgroup")
_NO_LIMIT = 2**62
"""Version 1 says a number of about 2^63 where there is none."""


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs, at least one; of a quota that is no whole number, the whole ones.

    Args:
        root: of the file system, another one in tests.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", root):
        quota, period = _quota(group)
        if quota > 0 and period > 0:
            cpus = min(cpus, max(1, quota // period))
    return cpus


def total_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that our processes may have together."""
    limits = [limit for limit, _ in _memory(root)]
    return min([psutil.virtual_memory().total, *limits])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that our processes may still take."""
    left = [max(0, limit - used) for limit, used in _memory(root)]
    return min([psutil.virtual_memory().available, *left])


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each group that has a limit; cached files that can be dropped are not counted as used."""
    for group in _groups("memory", root):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        if limit is None or limit >= _NO_LIMIT:
            continue
        used = _number(group / "memory.current", group / "memory.usage_in_bytes") or 0
        yield limit, used - _droppable(group / "memory.stat")


def _droppable(file: Path) -> int:
    facts = dict(line.split(" ", 1) for line in _text(file).splitlines() if " " in line)
    return int(facts.get("total_inactive_file") or facts.get("inactive_file") or 0)


def _quota(group: Path) -> tuple[int, int]:
    """Microseconds of CPU time in each so many; (0, 0) where there is no limit."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if quota.isdecimal():
        return int(quota), int(period)
    return _number(group / "cpu.cfs_quota_us") or 0, _number(group / "cpu.cfs_period_us") or 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of our groups that may limit something, from our own up to the topmost that can be seen from here."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        for top in {root / _GROUPS / names, root / _GROUPS / controller} if names else {root / _GROUPS}:
            own = top / path.lstrip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top) and group.is_dir())


def _number(*files: Path) -> int | None:
    """The number in the first of the files that holds one."""
    for file in files:
        text = _text(file)
        if text.isdecimal():
            return int(text)
    return None


def _text(file: Path) -> str:
    """Contents without the end of the line; "" where there is no such file, or it is not for us."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
