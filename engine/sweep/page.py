"""report.html of a sweep: the table, how the best settings went on validation rows, and the runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from engine.compare.page import failures, links, table, write_html
from engine.records import VALIDATION
from engine.store.folder import StoredRun
from engine.sweep.conduct import SettingResult
from engine.sweep.spec import Sweep
from engine.sweep.table import Row, cells_of, head_of, value_text
from engine.units import duration
from engine.views.report.charts import COLOURS, Bar, Curve, bars, curves, legend, whole_of
from engine.views.report.html import Element, element
from engine.views.report.words import as_words, count

NOTE = (
    "Settings are judged on validation rows: a score is the best value that a setting's model reached on them, as the "
    "mean over its runs. Test rows had no part in any choice; what the same models reached on them is shown beside."
)


def write_page(sweep: Sweep, finished: Sequence[SettingResult], rows: Sequence[Row], path: Path) -> None:
    """One file that needs no network; the same runs give the same bytes."""
    names = {one.setting.number: one for one in finished}
    complete = [row for row in rows if row.state == "complete"]
    write_html(
        path,
        f"{count(len(rows), 'setting')} of {sweep.source}",
        _lead(rows),
        table(
            head_of(sweep, rows),
            [cells_of(sweep, row) for row in rows],
            [row is rows[0] and row.state == "complete" for row in rows],
            score=1 + len(sweep.section.keys),
        ),
        _note(finished),
        [
            failures([f"setting {row.number:03}: {row.error}" for row in rows if row.state == "failed"]),
            _curves([(row, names[row.number].runs) for row in complete[:COLOURS]]),
            _bars(complete),
            links([run.folder.name for one in finished for run in one.runs]),
        ],
    )


def _lead(rows: Sequence[Row]) -> str:
    first = rows[0]
    if first.state != "complete":
        return "No setting was tried to its end."
    values = ", ".join(f"{key} {value_text(value)}" for key, value in first.values.items())
    figure = f"{as_words(first.figure.name)} {first.score_text} {first.figure.unit}".rstrip()
    return f"Setting {first.number:03} ({values}) is best, with {figure} on validation rows."


def _note(finished: Sequence[SettingResult]) -> str:
    saved = sum(one.saved_seconds for one in finished)
    return NOTE + (
        f" Equal client training was done once: {duration(saved)} of computing were spared." if saved else ""
    )


def _name(row: Row) -> str:
    return f"{row.number:03}"


def _curves(settings: Sequence[tuple[Row, Sequence[StoredRun]]]) -> Element | None:
    """The best settings round by round; None where no line has two points."""
    lines = []
    for row, runs in settings:
        by_round: dict[int, list[float]] = {}
        for stage in (stage for run in runs for stage in run.stages if stage.stage == VALIDATION):
            by_round.setdefault(stage.round + 1, []).append(stage.evaluation.figures[row.figure.name])
        points = [(float(number), statistics.fmean(values)) for number, values in sorted(by_round.items())]
        lines.append(Curve(_name(row), points))
    figure = settings[0][0].figure if settings else None
    drawn = None if figure is None else curves(lines, figure.name, figure.unit)
    if figure is None or drawn is None or max(len(line.points) for line in lines) < 2:
        return None
    words = f"The {as_words(figure.name)} on validation rows; {figure.better} is better."
    return element(
        "section",
        element("h2", "The best settings round by round, mean over their runs"),
        legend([line.name for line in lines]),
        drawn,
        element("p", words, class_="note"),
    )


def _bars(complete: Sequence[Row]) -> Element | None:
    if not complete:
        return None
    found = [
        Bar(
            _name(row),
            row.score.mean,
            row.score_text,
            ", ".join(f"{key} {value_text(value)}" for key, value in row.values.items()),
        )
        for row in complete
    ]
    return element("section", element("h2", "Scores"), bars(found, whole=whole_of(complete[0].figure)))
