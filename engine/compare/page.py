"""report.html of a comparison: the table, the curves, what each method cost, and what was the same for all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from engine.compare.conduct import CellResult
from engine.compare.spec import Comparison
from engine.compare.table import UNKNOWN, Row, best, cells_of, head_of, rank
from engine.records import GLOBAL
from engine.store.folder import replacing
from engine.units import duration
from engine.views.report.charts import Bar, Curve, bars, curves, holdings, legend, whole_of
from engine.views.report.html import Element, element, page
from engine.views.report.words import as_words, count


def write_page(comparison: Comparison, results: Sequence[CellResult], rows: Sequence[Row], path: Path) -> None:
    """One file that needs no network; the same runs give the same bytes."""
    winners = best(rows)
    write_html(
        path,
        f"{count(len(rows), 'method')} on {comparison.common.data.source}",
        _lead(comparison, rows),
        table(head_of(rows), [cells_of(row) for row in rows], [row.label in winners for row in rows]),
        _note(comparison, results),
        [
            failures([f"{row.label}, seed {seed}: {error}" for row in rows for seed, error in row.failed.items()]),
            _curves(comparison, results),
            _bars(rows),
            _cost(rows),
            _clients(results),
            links([one.cell.name for one in results if one.run is not None]),
        ],
    )


def write_html(path: Path, title: str, lead: str, table: Element, note: str, parts: Sequence[Element | None]) -> None:
    """Write the page of several runs: what is said of all of them, their table, and further parts."""
    style = files("engine.views.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "header",
        element("p", "Tessera", class_="brand"),
        element("h1", title),
        element("p", lead, class_="lead"),
        table,
        element("p", note, class_="note"),
    )
    with replacing(path) as temporary:
        temporary.write_bytes(page(title, style, head, *parts))


def table(head: Sequence[str], lines: Sequence[Sequence[str]], best: Sequence[bool], score: int = 1) -> Element:
    """A table whose lines begin with names; of the best ones the cell in column `score` is shown so."""
    names = element("tr", *(element("th", name) for name in head))
    body = []
    for (name, *rest), is_best in zip(lines, best, strict=True):
        cells = [element("th", name, scope="row"), *(element("td", text) for text in rest)]
        if is_best:
            cells[score].set("class", "best")
        body.append(element("tr", *cells))
    return element(
        "div", element("table", element("thead", names), element("tbody", *body)), class_="scroll", tabindex="0"
    )


def failures(lines: Sequence[str]) -> Element | None:
    """The runs that failed, a line each; None where there is none."""
    items = [element("li", line) for line in lines]
    return element("section", element("h2", "Runs that failed"), element("ul", *items)) if items else None


def links(names: Sequence[str]) -> Element | None:
    """Links to the runs' own pages, in the folders of these names; None where there is none."""
    items = [element("li", element("a", name, href=f"{name}/report.html")) for name in names]
    return element("section", element("h2", "The runs"), element("ul", *items)) if items else None


def _lead(comparison: Comparison, rows: Sequence[Row]) -> str:
    order = rank(rows)
    if not order:
        return "No run of a method with one model for all ended with a number."
    first, winners = order[0], best(rows)
    names = [row.label for row in order if row.label in winners]
    score = first.score_text if len(names) == 1 else first.figure_digits(first.score.mean)
    figure = f"{as_words(first.figure.name)} {score} {first.figure.unit}".rstrip()
    text = f"{' and '.join(names)} {'ends' if len(names) == 1 else 'end'} best, with {figure} on the test set"
    return f"{text}, over {count(len(comparison.seeds), 'seed')} and {count(comparison.common.rounds, 'round')}."


def _note(comparison: Comparison, finished: Sequence[CellResult]) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    saved = sum(f.saved_seconds for f in finished)
    text = (
        f"Mean ± standard deviation over seeds {seeds}. Of a seed, all methods share partition, initial weights and "
        "client work. Client steps are mini-batches of local training; client s are seconds of computing of all "
        "clients, generators included, as if no run had shared them."
    )
    if saved:
        text += f" Equal client training was done once: {duration(saved)} of computing were spared."
    if any(f.cell.config.method.type.personal for f in finished):
        text += (
            " Methods with own models are measured client by client on examples like a client's own, which is easier."
        )
    return text


def _curves(comparison: Comparison, finished: Sequence[CellResult]) -> Element | None:
    lines = []
    for label in comparison.labels:
        by_round: dict[int, list[float]] = {}
        for one in finished:
            if one.cell.label == label and one.run is not None:
                for stage in one.run.stages:
                    if stage.stage == GLOBAL:
                        by_round.setdefault(stage.round + 1, []).append(stage.evaluation.headline)
        if by_round:
            points = [(float(number), statistics.fmean(values)) for number, values in sorted(by_round.items())]
            lines.append(Curve(label, points))
    figure = next((one.run.headline for one in finished if one.run is not None), UNKNOWN)
    drawn = curves(lines, figure.name, figure.unit)
    if drawn is None or max(len(line.points) for line in lines) < 2:
        return None
    words = f"The {as_words(figure.name)} on the test set; {figure.better} is better."
    return element(
        "section",
        element("h2", "Round by round, mean over seeds"),
        legend([line.name for line in lines]),
        drawn,
        element("p", words, class_="note"),
    )


def _bars(rows: Sequence[Row]) -> Element | None:
    shown = sorted((row for row in rows if row.values), key=lambda row: row.rank)
    if not shown:
        return None
    found = [
        Bar(
            row.label,
            row.score.mean,
            row.score_text,
            "seeds: " + ", ".join(map(row.figure_digits, row.values.values())),
        )
        for row in shown
    ]
    figure = shown[0].figure
    unit = f", in {'percent' if figure.unit == '%' else figure.unit}" if figure.unit else ""
    words = f"The {as_words(figure.name)} after the last round{unit}; {figure.better} is better."
    return element(
        "section", element("h2", "At the end"), bars(found, whole=whole_of(figure)), element("p", words, class_="note")
    )


def _cost(rows: Sequence[Row]) -> Element | None:
    shown = [row for row in rows if row.client_seconds.values]
    if not shown:
        return None
    clients = [Bar(row.label, row.client_seconds.mean, f"{row.client_seconds.mean:,.0f} s") for row in shown]
    server = [Bar(row.label, row.server_seconds.mean, f"{row.server_seconds.mean:,.0f} s") for row in shown]
    return element(
        "section",
        element("h2", "What it took"),
        element("h3", "computing of all clients"),
        bars(clients),
        element("h3", "the server"),
        bars(server, colour="c1"),
    )


def _clients(finished: Sequence[CellResult]) -> Element | None:
    run = next((one.run for one in finished if one.run is not None), None)
    if run is None:
        return None
    title = f"Who holds what, seed {run.result['seed']}"
    return element("section", element("h2", title), holdings(run.label_counts, run.class_names))
