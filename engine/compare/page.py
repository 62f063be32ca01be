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
    style = files("engine.views.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"{count(len(rows), 'method')} on {comparison.common.data.source}"
    head = element(
        "header",
        element("p", "Tessera", class_="brand"),
        element("h1", title),
        element("p", _lead(comparison, rows), class_="lead"),
        _table(rows),
        element("p", _note(comparison, results), class_="note"),
    )
    parts = [
        _failures(rows),
        _curves(comparison, results),
        _bars(rows),
        _cost(rows),
        _clients(results),
        _runs(results),
    ]
    with replacing(path) as temporary:
        temporary.write_bytes(page(title, style, head, *parts))


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


def _table(rows: Sequence[Row]) -> Element:
    winners = best(rows)
    head = element("tr", *(element("th", name) for name in head_of(rows)))
    body = []
    for row in rows:
        name, *rest = cells_of(row)
        cells = [element("td", text) for text in rest]
        if row.label in winners:
            cells[0].set("class", "best")
        body.append(element("tr", element("th", name, scope="row"), *cells))
    return element(
        "div", element("table", element("thead", head), element("tbody", *body)), class_="scroll", tabindex="0"
    )


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


def _failures(rows: Sequence[Row]) -> Element | None:
    failed = [(row.label, seed, error) for row in rows for seed, error in row.failed.items()]
    if not failed:
        return None
    items = [element("li", f"{label}, seed {seed}: {error}") for label, seed, error in failed]
    return element("section", element("h2", "Runs that failed"), element("ul", *items))


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


def _runs(finished: Sequence[CellResult]) -> Element | None:
    links = [
        element("li", element("a", one.cell.name, href=f"{one.cell.name}/report.html"))
        for one in finished
        if one.run is not None
    ]
    return element("section", element("h2", "The runs"), element("ul", *links)) if links else None
