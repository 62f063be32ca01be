"""The calls of the library; each stands for a command of the same name.

A call takes a configuration (a preset's name, a YAML file, or a mapping) and, as keywords, the keys that differ.
Mistakes are told by one exception, a `UserError`; with all that is wrong where it is the configuration (`ConfigError`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from engine.api.results import Comparison, DealtData, Run, SweepTable
from engine.api.settings import Configuration, config_of, name_of, overrides_of, tree_of
from engine.api.watching import OnRound, listening, open_screen
from engine.config import to_tree
from engine.config.own_code import named_modules
from engine.errors import UserError, mistakes
from engine.planning.report import PlanReport

P = ParamSpec("P")
T = TypeVar("T")


def _telling_mistakes(call: Callable[P, T]) -> Callable[P, T]:
    """A call that raises a person's mistakes as `UserError` alone, without the frames and causes of ours."""

    @wraps(call)
    def tell(*arguments: P.args, **keys: P.kwargs) -> T:
        try:
            return call(*arguments, **keys)
        except mistakes() as error:
            mistake = error if isinstance(error, UserError) else UserError(str(error))
        raise mistake.with_traceback(None) from None

    return tell


@_telling_mistakes
def run(
    configuration: Configuration,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    on_round: OnRound | None = None,
    **keys: Any,
) -> Run:
    """Run a configuration, and keep all that is known of it in a folder.

    Args:
        configuration: a preset's name, a YAML file, or a mapping of sections.
        out: the run's folder, new or empty; `runs/NAME-seed-SEED` where None.
        progress: write it to stderr, or into the notebook's cell.
        on_round: called with a `Round` after each; what it raises ends the run, which `resume` can then go on with.
        keys: of the configuration, as `rounds=4, clients={"lr": 0.1}`; a mapping changes the keys it has.

    Raises:
        UserError: before anything is written, for what a person can put right.
        StepError: a client's step raised.
    """
    from engine.run.launch import free_folder, launch

    config = config_of(configuration, keys)
    folder = Path(out) if out is not None else free_folder(name_of(configuration), config.seed)
    with listening(progress, on_round) as watcher:
        launch(config, name_of(configuration), folder, watcher)
    return open(folder, code=set(named_modules(to_tree(config)).values()))


@_telling_mistakes
def resume(
    folder: str | Path,
    *,
    code: Collection[str] = (),
    progress: bool = True,
    on_round: OnRound | None = None,
    **keys: Any,
) -> Run:
    """Go on with a run that ended before its last round, in whatever way. It ends as if nothing had happened.

    Args:
        folder: of the run; one that is finished is handed back as it is, unless `rounds` asks for more.
        code: modules of one's own that the folder names; no other is imported.
        progress, on_round: as of `run`.
        keys: that differ from now on: more `rounds`, and what no result depends on.
    """
    from engine.run.launch import resume as go_on

    with listening(progress, on_round) as watcher:
        go_on(Path(folder), overrides_of(keys, {}), watcher, code)
    return open(folder, code=code)


@_telling_mistakes
def open(folder: str | Path, *, code: Collection[str] = ()) -> Run:
    """A finished run, from its folder.

    Args:
        code: modules of one's own that the run's `model` may import; nothing is imported before.
    """
    from engine.store.folder import read

    return Run(read(Path(folder)), tuple(code))


@_telling_mistakes
def plan(configuration: Configuration, **keys: Any) -> PlanReport:
    """Plan a run: what would run where, what it would need, and what would be sent. Nothing is trained. Printed, it is
    the text of `tessera plan`."""
    from engine.run.hosting import predicted_plan

    return predicted_plan(config_of(configuration, keys))


@_telling_mistakes
def partition(configuration: Configuration, **keys: Any) -> DealtData:
    """Deal the training rows to clients: a table, counts, a picture. Nothing is trained and nothing is written."""
    from engine.planning.federation import Federation

    return DealtData.of(Federation.gather(config_of(configuration, keys)))


@_telling_mistakes
def compare(
    methods: Sequence[str],
    configuration: Configuration,
    *,
    seeds: int = 3,
    out: str | Path | None = None,
    progress: bool = True,
    **keys: Any,
) -> Comparison:
    """Run several methods under the same partition, initial weights, client work and seeds.

    Args:
        methods: names, or labels of the configuration's `methods`; all of these where empty.
        configuration: as of `run`, or a comparison by its name.
        seeds: how many, from the configuration's own.
        out: the comparison's folder; `runs/compare-NAME` where None. Called again, what is missing there is run.
        keys: of the configuration for all methods, and `methods={LABEL: {...}}` for one.
    """
    from engine.compare import compare as perform
    from engine.compare import comparison_of

    source, name = _source_of(configuration), name_of(configuration)
    comparison = comparison_of(methods, source, overrides_of(keys, _base_of(source)), seeds)
    folder = Path(out) if out is not None else Path("runs") / f"compare-{Path(name).stem}"
    with _comparison_watcher(progress) as watcher:
        compared = perform(comparison, folder, _call_text("compare", list(methods), name, seeds=seeds, **keys), watcher)
    return Comparison.of(compared)


@_telling_mistakes
def sweep(
    configuration: Configuration, *, out: str | Path | None = None, progress: bool = True, **keys: Any
) -> SweepTable:
    """Try many settings of a configuration, judged on validation rows alone.

    Args:
        configuration: a YAML file with a section `sweep`, or the mapping that one would hold.
        out: the sweep's folder; `runs/sweep-NAME` where None. Called again, what is missing there is tried.
        keys: that differ, for all settings.
    """
    from engine.sweep import sweep as perform
    from engine.sweep import sweep_of

    source, name = _source_of(configuration), name_of(configuration)
    base = source if isinstance(source, Mapping) else tree_of(source)
    planned = sweep_of(source, overrides_of(keys, base))
    folder = Path(out) if out is not None else Path("runs") / f"sweep-{Path(name).stem}"
    with _sweep_watcher(progress) as watcher:
        done = perform(planned, folder, _call_text("sweep", name, **keys), watcher)
    return SweepTable.of(done)


@contextmanager
def _sweep_watcher(progress: bool) -> Iterator[Any]:
    from engine.sweep.progress import SweepSilence, SweepTerminal

    if not progress:
        yield SweepSilence()
        return
    with SweepTerminal(open_screen()) as terminal:
        yield terminal


def _source_of(configuration: Configuration) -> str | Mapping[str, Any]:
    return tree_of(configuration) if isinstance(configuration, Mapping) else str(configuration)


def _base_of(source: str | Mapping[str, Any]) -> Mapping[str, Any]:
    from engine.compare.spec import tree_of as tree_of_comparison

    return tree_of_comparison(source)


def _call_text(call: str, *arguments: Any, **keys: Any) -> str:
    """A call as it might have been typed."""
    words = [json.dumps(argument, default=str, ensure_ascii=False) for argument in arguments]
    words += [f"{key}={json.dumps(value, default=str, ensure_ascii=False)}" for key, value in keys.items()]
    return f"tessera.{call}({', '.join(words)})"


@contextmanager
def _comparison_watcher(progress: bool) -> Iterator[Any]:
    from engine.compare.progress import ComparisonSilence, ComparisonTerminal

    if not progress:
        yield ComparisonSilence()
        return
    with ComparisonTerminal(open_screen()) as terminal:
        yield terminal
