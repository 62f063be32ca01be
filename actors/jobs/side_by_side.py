"""Whole runs side by side on Ray: one task each, as many at a time as the cluster has room for.

A run inside such a task keeps to one thread and starts nothing of its own. What runs share (a store of trained
networks, and how far each has come) goes through one actor on the driver's node, so that no storage need be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.jobs.job import Job, JobResult, Share, Tell, error_result, ready_jobs
from actors.jobs.recall import FolderStore, Store
from clusters.bits import worker_options

_LOOK_SECONDS = 1.0


class _SharedPlace:
    """The stores of the driver's machine, and what jobs said last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, str] = {}

    def get(self, group: str, key: str) -> bytes | None:
        return FolderStore(self._folder / group).get(key)

    def put(self, group: str, key: str, value: bytes) -> None:
        FolderStore(self._folder / group).put(key, value)

    def tell(self, job: str, text: str) -> None:
        self._lines[job] = text

    def progress(self) -> dict[str, str]:
        return self._lines


class _RemoteStore:
    """A store in the shared place, reached from elsewhere.

    It waits beside `ray.get`, in which a task lends its CPUs to others: these would go on when it does, too.
    """

    def __init__(self, place: Any, group: str) -> None:
        self._place, self._group = place, group

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._place.get.remote(self._group, key).future().result()
        return found

    def put(self, key: str, value: bytes) -> None:
        self._place.put.remote(self._group, key, value).future().result()


def _perform(call: Callable[[Any, Store, Tell], Any], group: str, name: str, shared: Any, place: Any) -> JobResult:
    try:
        return JobResult(name, call(shared, _RemoteStore(place, group), lambda text: place.tell.remote(name, text)))
    except Exception as error:
        return error_result(name, error)


def side_by_side(
    jobs: Sequence[Job], shared: Any, folder: Path, share: Share, watch: Callable[[dict[str, str]], None]
) -> Iterator[JobResult]:
    """Perform jobs on the cluster this process is connected to; each is given back when it has ended.

    Args:
        shared: given to every job, put into the object store once.
        folder: of the stores, one for each group of jobs.
        watch: hears about once a second what each job under way said last.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    place: Any = ray.remote(_SharedPlace).options(num_cpus=0, scheduling_strategy=here).remote(folder)
    # A process of its own for each job, so that the memory it took at most is its own.
    reserve = ray.remote(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        memory=share.memory,
        max_calls=1,
        max_retries=2,
        **worker_options(share.bits),
    )
    task = reserve(_perform)
    held, waiting = ray.put(shared), list(jobs)
    running: dict[Any, Job] = {}
    ended: set[str] = set()
    try:
        while waiting or running:
            for job in ready_jobs(waiting, ended):
                waiting.remove(job)
                running[task.remote(job.call, job.group, job.name, held, place)] = job
            done, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
            lines: dict[str, str] = ray.get(place.progress.remote())
            watch({job.name: lines[job.name] for job in running.values() if job.name in lines})
            for reference in done:
                job = running.pop(reference)
                ended.add(job.name)
                yield _outcome(reference, job)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.kill(place)


def _outcome(reference: Any, job: Job) -> JobResult:
    try:
        ended: JobResult = ray.get(reference)
        return ended
    except RayError as error:
        return JobResult(job.name, None, error="its process was lost", traceback=str(error))
