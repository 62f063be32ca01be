"""Jobs: pieces of work that may go on side by side, some after others. Here they are done one after another."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from actors.jobs.recall import FolderStore, Store
from clusters.bits import Bits

Tell: TypeAlias = Callable[[str], None]
"""Says how far a job has come."""


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: unique.
        group: jobs of one group share a store.
        after: name of another of the jobs, which must have ended before; None for none.
        call: (what all jobs share, the group's store, tell) to a result.
    """

    name: str
    group: str
    after: str | None
    call: Callable[[Any, Store, Tell], Any]


@dataclass(frozen=True)
class Share:
    """Resources that one job reserves: CPUs, GPUs, and bytes of memory; and the bits that it computes."""

    cpus: float
    gpus: float
    memory: int
    bits: Bits = "native"


@dataclass(frozen=True)
class JobResult:
    """The result of a job, or the error that ended it.

    Attributes:
        value: what it gave; None where it raised.
        error, traceback: what it raised, in a line and whole; empty where it did not.
    """

    name: str
    value: Any
    error: str = ""
    traceback: str = ""


def error_result(name: str, error: Exception) -> JobResult:
    """The result of a job that raised; call it where the exception is handled."""
    lines = str(error).splitlines() or [""]
    return JobResult(name, None, error=f"{type(error).__name__}: {lines[0]}", traceback=traceback.format_exc())


def ready_jobs(waiting: Sequence[Job], finished: Collection[str]) -> list[Job]:
    """The waiting jobs that may start now."""
    return [job for job in waiting if job.after is None or job.after in finished]


def one_by_one(
    jobs: Sequence[Job], shared: Any, folder: Path, watch: Callable[[dict[str, str]], None]
) -> Iterator[JobResult]:
    """Perform jobs in this process, in their order; see `actors.jobs.side_by_side.side_by_side`."""
    for job in jobs:
        store, name = FolderStore(folder / job.group), job.name
        try:
            yield JobResult(name, job.call(shared, store, lambda text, name=name: watch({name: text})))  # type: ignore[misc]
        except Exception as error:
            yield error_result(name, error)
