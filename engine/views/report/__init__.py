"""report.html: what a run did, as one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from engine.errors import UserError
from engine.records import Result, RoundRecord, RunStart, StageRecord
from engine.store.folder import RunFolder, StoredRun, read, replacing
from engine.views.report import sections
from engine.views.report.html import element, page
from engine.views.report.items import items
from engine.views.report.summary import summary, title
from engine.views.report.words import as_words, labels

__all__ = ["ReportWatcher", "write_report"]

_SECTIONS = (
    sections.by_round,
    sections.stage_bars,
    sections.per_class,
    sections.confusion,
    sections.by_client,
    sections.clients,
    sections.pictures,
    items,
    sections.left_clients,
    sections.traffic,
    sections.seconds,
    sections.faults,
    sections.settings,
)


def write_report(runs: Sequence[StoredRun], path: Path) -> None:
    """Write one page about one run, or about several side by side; the same runs give the same bytes.

    A section about which the runs have nothing to say is left out.

    Raises:
        UserError: runs whose headline figures differ, which cannot be ranked.
    """
    _require_one_headline(runs)
    style = files("engine.views.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element("header", element("p", "Tessera", class_="brand"), element("h1", title(runs)), *summary(runs))
    with replacing(path) as temporary:
        temporary.write_bytes(page(title(runs), style, head, *(section(runs) for section in _SECTIONS)))


def _require_one_headline(runs: Sequence[StoredRun]) -> None:
    if any(run.headline != runs[0].headline for run in runs):
        found = ", ".join(
            f"{name} by {as_words(run.headline.name)}" for name, run in zip(labels(runs), runs, strict=True)
        )
        raise UserError(f"runs that are measured by different figures cannot be compared: {found}; report them apart")


class ReportWatcher:
    """Writes a run's report when it is finished; to be told after the folder's own watcher."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def started(self, start: RunStart) -> None:
        """Nothing to write yet, as in every other moment before the end."""

    def step(self, round: int, step: str, done: int, total: int) -> None: ...

    def stage(self, record: StageRecord) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def finished(self, result: Result) -> None:
        write_report([read(self._folder.path)], self._folder.report)

    def failed(self, error: BaseException) -> None: ...
