"""Settings tried side by side by Ray Tune, all of them or as long as asynchronous successive halving lets them go on.

Asynchronous halving (ASHA: Li et al. 2020, arXiv 1810.05934) decides by the scores that are there when one arrives, so
that its choice would depend on which process was faster. Here a trial shows its score of a step only after all trials
before it have shown theirs or have ended: they still go on side by side, each at most as far as those before it, and
what is decided follows from their order alone.
"""

from __future__ import annotations

import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.callback import Callback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.jobs.job import Share
from actors.jobs.recall import FolderStore
from actors.jobs.trials import Trial, TrialEar, Writable, write_failure
from clusters.environment import variable


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving: at the steps `first`, `first * factor`, ... the best 1 / factor go on.

    Attributes:
        last: the last step of a trial that is never ended.
    """

    first: int
    factor: float
    last: int


class _Place:
    """The place that trials share on the driver's machine: a store, what they hand over, the turnstile of reports."""

    def __init__(self, folder: Path, store: Path, trials: int) -> None:
        self._folder, self._store = folder, FolderStore(store)
        self._steps: list[float] = [0.0] * trials
        self._changed = threading.Condition()

    def get(self, key: str) -> bytes | None:
        return self._store.get(key)

    def put(self, key: str, value: bytes) -> None:
        self._store.put(key, value)

    def keep(self, name: str, handed: Writable) -> None:
        handed.write(self._folder / name)

    def fail(self, name: str, text: str) -> None:
        write_failure(self._folder, name, text)

    def wait(self, trial: int, step: int) -> None:
        """Return when all trials before this one have shown this step, or have ended."""
        with self._changed:
            self._changed.wait_for(lambda: all(seen >= step for seen in self._steps[:trial]))

    def show(self, trial: int, step: float) -> None:
        """A trial's score of a step has been decided upon; infinity where it has ended."""
        with self._changed:
            self._steps[trial] = max(self._steps[trial], step)
            self._changed.notify_all()


class _PlaceStore:
    """The store of the shared place, reached from elsewhere."""

    def __init__(self, place: Any) -> None:
        self._place = place

    def get(self, key: str) -> bytes | None:
        found: bytes | None = ray.get(self._place.get.remote(key))
        return found

    def put(self, key: str, value: bytes) -> None:
        ray.get(self._place.put.remote(key, value))


def _perform(config: dict[str, Any], trials: Sequence[Trial], shared: Any, place: Any, in_order: bool) -> None:
    number: int = config["trial"]

    def report(step: int, score: float) -> None:
        if in_order:
            ray.get(place.wait.remote(number, step))
        tune.report({"step": step, "score": score})

    def keep(name: str, handed: Writable) -> None:
        ray.get(place.keep.remote(name, handed))

    try:
        trials[number].call(shared, _PlaceStore(place), report, keep)
    except Exception:  # the other trials go on
        ray.get(place.fail.remote(trials[number].name, traceback.format_exc()))


class _OrderedHalving(AsyncHyperBandScheduler):
    """Ray Tune's ASHA, which says after each decision that the next trial may show its score."""

    def __init__(self, halving: Halving, place: Any) -> None:
        super().__init__(
            time_attr="step",
            grace_period=halving.first,
            reduction_factor=halving.factor,
            max_t=halving.last + 1,
            stop_last_trials=False,
        )
        self._place, self._last = place, halving.last

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("step", 0) >= self._last:  # nothing would be spared
            return str(TrialScheduler.CONTINUE)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        ends = decision == TrialScheduler.STOP
        self._show(trial, float("inf") if ends else result.get("step", 0))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._show(trial, float("inf"))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        self._show(trial, float("inf"))

    def _show(self, trial: Any, step: float) -> None:
        ray.get(self._place.show.remote(trial.config["trial"], step))


class _Teller(Callback):
    """Tells an ear what Ray Tune's driver hears."""

    def __init__(self, trials: Sequence[Trial], ear: TrialEar) -> None:
        self._trials, self._ear = trials, ear

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune keeps a copy for its own way to go on after an interruption, which is not used."""
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "score" in result:
            self._ear.score(self._trials[trial.config["trial"]].name, result["step"], result["score"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ear.finished(self._trials[trial.config["trial"]].name)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ear.finished(self._trials[trial.config["trial"]].name)


_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails reports nothing
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tune_trials(
    trials: Sequence[Trial],
    shared: Any,
    folder: Path,
    store: Path,
    share: Share,
    better: Literal["higher", "lower"],
    halving: Halving | None,
    ear: TrialEar,
) -> None:
    """Try settings on the cluster this process is connected to, as many at a time as there is room for.

    Args:
        shared: given to every trial, put into the object store once.
        folder: into which what trials hand over is written, and `NAME-failed.txt` of those that raised.
        store: folder of what trials share; see `actors.jobs.recall`.
        share: what one trial reserves.
        better: which scores are.
        halving: None lets every trial go on to its end.
        ear: hears of trials, in this process.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reserve = ray.remote(_Place).options(num_cpus=0, scheduling_strategy=here, max_concurrency=len(trials) + 8)
    place: Any = reserve.remote(folder, store, len(trials))
    trainable = tune.with_parameters(
        _perform, trials=list(trials), shared=shared, place=place, in_order=halving is not None
    )
    bundle = {"CPU": share.cpus, "memory": share.memory, **({"GPU": share.gpus} if share.gpus else {})}
    try:
        with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="tessera-tune-") as storage:
            for name, value in _QUIET.items():
                stack.enter_context(variable(name, value))
            tune.Tuner(
                tune.with_resources(trainable, tune.PlacementGroupFactory([bundle])),
                param_space={"trial": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(
                    metric="score",
                    mode="max" if better == "higher" else "min",
                    scheduler=FIFOScheduler() if halving is None else _OrderedHalving(halving, place),
                    reuse_actors=False,
                ),
                run_config=tune.RunConfig(
                    name="sweep", storage_path=storage, verbose=0, callbacks=[_Teller(trials, ear)]
                ),
            ).fit()
    finally:
        ray.kill(place)
