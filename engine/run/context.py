"""A run and its circumstances, in one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.clock import PhaseClock
from actors.hosts.placement import Placement
from engine.config import RunConfig, to_tree
from engine.config.own_code import resume_command
from engine.planning.federation import Federation
from engine.records import RunStart
from engine.store.folder import RunFolder


@dataclass(frozen=True, eq=False)
class RunContext:
    """The context of a run, given to all of its parts.

    Attributes:
        federation: what is run.
        files: the run's folder, already made.
        preset: name or file that the configuration came from.
        clock: runs since the command began.
        changes: what differs from how the run began, by key, in words; empty for a new run.
        placement: the hosts of its clients; None where there are none, since all is done in one process.
        facts: what the plan says, in words: runner, placement and why, memory.
        processors: who computes on each kind of processor, now or before the run was resumed.
        notes: what a person was told as the run went, such as that MLflow was lost; grows.
    """

    federation: Federation
    files: RunFolder
    preset: str
    clock: PhaseClock
    changes: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    processors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        """Complete and resolved."""
        return self.federation.config

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.files.path

    @property
    def way_on(self) -> str:
        """The command that resumes the run once it has ended, as the end of a sentence."""
        return f"then go on with `{resume_command(self.folder, to_tree(self.config))}`"

    def start(self) -> RunStart:
        """The facts that watchers hear before the first round."""
        dataset = self.federation.dataset
        return RunStart(
            folder=self.folder,
            config=to_tree(self.config),
            class_names=dataset.task.class_names,
            label_counts=self.federation.partition.counts(dataset.train_labels, dataset.task.classes),
            figures=dataset.task.figures,
            facts={**self.facts, **{f"changed: {key}": words for key, words in self.changes.items()}},
            preset=self.preset,
            kinds=self.federation.needs.kinds,
            stages=self.federation.needs.stages,
            processors=self.processors,
            weights=self.federation.weights_digest,
        )
