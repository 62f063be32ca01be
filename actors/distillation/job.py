"""Distillation on Ray: generated inputs through a Ray Data pipeline to a student in a Ray Train job.

    batch numbers -> samplers (latents, inputs) -> teachers (logits) -> train workers (the student)

Sampling and labelling run ahead of the student, bounded in memory, in actors of their own sizes. With one train worker
the student has the bits of `algorithms.core.distillation.distil_here`.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._raylet import PlacementGroupID
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException
from torch import Tensor, nn

from actors.distillation.plan import DistillationError, DistilResources, Room, shortage
from actors.runner import NO_LISTENER, Listener
from algorithms.core.distillation import Distillation
from algorithms.core.payload import Tensors
from algorithms.core.states import snapshot
from clusters.bits import Bits, worker_options

_POLL_SECONDS = 0.2
_LOOKS = 50

NetT = TypeVar("NetT", bound=nn.Module)


def distil_on_ray(
    job: Distillation, resources: DistilResources, storage: Path, listener: Listener = NO_LISTENER
) -> dict[str, Tensor]:
    """Perform a distillation on the cluster this process is connected to.

    Args:
        storage: a folder for the student's checkpoints that every node of the train workers sees, empty, or left by
            an unfinished run of this very job, which then goes on.
        listener: hears of the steps done when the train workers begin, a few times a second as far as they have grown,
            and after the last step.

    Returns:
        The student's state dict after the last step, on the CPU.

    Raises:
        DistillationError: the actors do not fit into what is free; it stood still for `resources.patience` seconds;
            a part of the job raised; or more train workers were lost than `resources.retries`.
    """
    if job.steps == 0:
        return snapshot(job.student)
    _require_room(resources)
    groups = set(placement_group_table())
    monitor = _start_monitor(resources.bits)
    try:
        running = monitor.perform.remote(_pack(job), resources, storage.resolve())
        return _wait_for_result(monitor, running, job.steps, resources, listener)
    finally:
        ray.kill(monitor)
        _release(groups)


def _require_room(resources: DistilResources) -> None:
    """Raise DistillationError without room; retry briefly where only others' actors are in the way."""
    whole = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    looks = 1 if shortage(resources, whole) else _LOOKS
    for _ in range(looks):
        reason = shortage(resources, _free_room())
        if reason is None:
            return
        time.sleep(_POLL_SECONDS)
    raise DistillationError(reason)


def _free_room() -> list[Room]:
    """Free resources of each living node."""
    from ray._private.state import available_resources_per_node  # Ray has no public call that tells nodes apart

    return [room for _, room in sorted(available_resources_per_node().items())]


def _release(before: Collection[str]) -> None:
    """Give back what the train workers had reserved.

    Ray ends the actors that a killed one has started, but not the placement groups. A controller that has not ended
    yet could still make one.
    """
    mine = ray.get_runtime_context().get_job_id()
    for _ in range(_LOOKS):
        ended = not _actors_in("!=", "DEAD", "TrainController")
        for group, facts in placement_group_table().items():
            if group not in before and group.endswith(mine) and facts["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _actors_in(equal: str, state: str, *names: str) -> list[str]:
    """Class names of this job's actors whose state is (`=`) or is not (`!=`) the given one, of these classes or all."""
    context = ray.get_runtime_context()
    filters: list[Any] = [("state", equal, state), ("job_id", "=", context.get_job_id())]
    filters += [("class_name", "=", name) for name in names]
    try:
        found = list_actors(context.gcs_address, filters=filters)
    except (RayStateApiException, ConnectionError, AuthenticationError):
        # The dashboard, which answers this, is not there. Ray names an address also where it is off, and another
        # cluster's may be there, which asks for its own token.
        return []
    return sorted({actor.class_name for actor in found})


@dataclass(frozen=True)
class _Parcel:
    """A job taken apart for the object store, so that no actor loads what it does not use."""

    source: ray.ObjectRef[Any]
    teacher: ray.ObjectRef[Any]
    lesson: ray.ObjectRef[Any]
    steps: int
    distinct: int


class _AbsentSource:
    """Stands for a source that the receiver has no use for."""

    def latents(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError("the source lies with the pipeline")

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("the source lies with the pipeline")


def _pack(job: Distillation) -> _Parcel:
    lesson = replace(job, source=_AbsentSource(), teacher=nn.Identity(), student=_on_cpu(job.student))
    return _Parcel(ray.put(job.source), ray.put(_on_cpu(job.teacher)), ray.put(lesson), job.steps, job.distinct)


def _on_cpu(net: NetT) -> NetT:
    """The network, as a copy where it lies on a card that its receiver may not have."""
    return net if all(p.device.type == "cpu" for p in net.parameters()) else copy.deepcopy(net).to("cpu")


def _start_monitor(bits: Bits) -> Any:
    """On this node, where the checkpoints' folder is; one call may run while others come in.

    All processes of the job descend from it, and compute its bits.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}
    options |= worker_options(bits)
    monitor: Any = ray.remote(**options)(_Monitor).remote()
    return monitor


@dataclass(frozen=True)
class _News:
    """The monitor's view of the job.

    Attributes:
        last: the last batch `sampled`, the last one `labelled`, the steps `trained`, as far as heard of.
        silence: seconds since any of these was heard of, or since the job began.
        replaced: kinds of the processes that were lost and have been replaced, in the order of the replacements.
        failure: traceback of an error that would come again.
    """

    last: Mapping[str, int]
    silence: float
    replaced: tuple[str, ...]
    failure: str | None


class _Monitor:
    """Runs the Train job and hears of its progress. Whatever it has started ends when it is killed."""

    def __init__(self) -> None:
        # Read by Ray Train in this process: a watcher and counters that a job of minutes has no use for, and the pause
        # between two looks at the train workers, which every checkpoint and the end of the job wait for.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
        self._last: dict[str, int] = {}
        self._last_progress = time.monotonic()
        self._identities: set[str] = set()
        self._replacements: list[str] = []
        self._failure: str | None = None

    def perform(self, parcel: _Parcel, resources: DistilResources, storage: Path) -> dict[str, Tensor]:
        """The whole Train job."""
        from actors.distillation.pipeline import Stages
        from actors.distillation.trainer import Feed, Lesson, train

        me = ray.get_runtime_context().current_actor
        stages = Stages(parcel.source, parcel.teacher, resources.trainers.count, me)
        feed = Feed(parcel.steps, parcel.distinct, stages, resources, storage)
        return train(feed, Lesson(parcel.lesson, resources.checkpoint_every, me))

    def note(self, what: str, number: int) -> None:
        """Hear that a stage has come to a batch, or the student to a step."""
        self._last[what] = number
        self._last_progress = time.monotonic()

    def begin(self, kind: str, identity: str) -> None:
        """Hear that a process begins. One that was lost is replaced by another with its identity."""
        if identity in self._identities:
            self._replacements.append(kind)
        self._identities.add(identity)

    def fail(self, text: str) -> None:
        """Hear of an error that would come again."""
        self._failure = text

    def news(self) -> _News:
        """Everything heard so far."""
        return _News(dict(self._last), time.monotonic() - self._last_progress, tuple(self._replacements), self._failure)


def _wait_for_result(
    monitor: Any, running: ray.ObjectRef[Any], steps: int, resources: DistilResources, listener: Listener
) -> dict[str, Tensor]:
    """The result of a running job, or the reason why there will be none."""
    last, replaced, ended = -1, 0, False
    try:
        while not ended:
            ended = bool(ray.wait([running], timeout=_POLL_SECONDS)[0])
            news = _news_of(monitor)
            _refuse_failure_or_stall(news, steps, resources)
            last = _report_progress(news.last.get("trained", -1), last, listener.done)
            for kind in news.replaced[replaced:]:
                listener.replaced(kind)
            replaced = len(news.replaced)
        student: dict[str, Tensor] = ray.get(running)
        _report_progress(steps, last, listener.done)
    except RayActorError as error:
        raise DistillationError(f"the process that led the distillation died: {error}") from error
    except RayTaskError as error:
        _refuse_failure_or_stall(_news_of(monitor), steps, resources)
        raise DistillationError(f"the distillation failed: {error}") from error
    return student


def _news_of(monitor: Any) -> _News:
    news: _News = ray.get(monitor.news.remote())
    return news


def _report_progress(steps: int, last: int, report: Callable[[int], None]) -> int:
    """Report new steps, and return the most that were reported: steps redone after a loss are not reported again."""
    if steps > last:
        report(steps)
    return max(steps, last)


def _refuse_failure_or_stall(news: _News, steps: int, resources: DistilResources) -> None:
    if news.failure is not None:
        raise DistillationError(f"a part of the distillation raised:\n{news.failure}")
    if news.silence > resources.patience:
        raise DistillationError(
            describe_stall(news.last, steps, resources.patience, _actors_in("=", "PENDING_CREATION"))
        )


def describe_stall(last: Mapping[str, int], steps: int, patience: float, waiting: Sequence[str]) -> str:
    """Describe a stalled distillation in a sentence.

    Args:
        last: see `_News`.
        waiting: class names of actors that have been asked for and have not started.
    """
    sampled, labelled = (last.get(what, "none") for what in ("sampled", "labelled"))
    reached = (
        f"{last['trained']} of {steps} steps are done, last batch sampled: {sampled}, last labelled: {labelled}"
        if "trained" in last
        else "the train workers have not started"
    )
    places = f"; not started yet: {', '.join(waiting)}" if waiting else ""
    return f"nothing in the distillation has finished for {patience:g} s: {reached}{places}"
