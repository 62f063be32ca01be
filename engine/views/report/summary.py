"""The head of a report: what came out, in sentences and a few figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from algorithms.core.task import Figure
from engine.store.folder import StoredRun
from engine.units import difference_text, duration, figure_text, size
from engine.views.report.html import Element, element
from engine.views.report.words import FINAL, as_words, count, labels, settings

Runs = Sequence[StoredRun]

_SHOWN_DIFFERENCES = 12


def title(runs: Runs) -> str:
    """`mosaic on digits`; the names of two or three runs, the number of more."""
    if len(runs) > 3:
        return f"{len(runs)} runs side by side"
    if len(runs) > 1:
        return " · ".join(labels(runs))
    return f"{runs[0].result['method']} on {_source(runs[0])}"


def _source(run: StoredRun) -> str:
    return str(run.config.get("data", {}).get("source", "its data"))


def summary(runs: Runs) -> list[Element]:
    """Sentences, then tiles of one run or a table of several."""
    if len(runs) == 1:
        return [element("p", _sentence(runs[0]), class_="lead"), _tiles(runs[0])]
    return [element("p", _ranking(runs), class_="lead"), _table(runs), element("p", _differences(runs), class_="note")]


def _sentence(run: StoredRun) -> str:
    result, headline = run.result, run.headline
    text = (
        f"After {count(result['rounds'], 'round')} with {count(len(run.label_counts), 'client')}, the model of "
        f"{result['method']} reaches {as_words(headline.name)} {figure_text(run.score, headline.unit)} on the test set"
    )
    earlier = [
        f"{name} {figure_text(value, headline.unit)}" for name, value in result["stages"].items() if name != FINAL
    ]
    text = f"{text}; on the way there: {', '.join(earlier)}." if earlier else f"{text}."
    stop = result.get("stop")
    if not stop:
        return text
    reason = str(stop["reason"])
    return f"{text} It was {reason}." if stop["early"] else f"{text} {reason[0].upper()}{reason[1:]}."


def round_seconds(run: StoredRun) -> float | None:
    """Median wall time of a round; None without rounds."""
    rounds = run.seconds.group_by("round", use_threads=False).aggregate([("seconds", "sum")])
    return statistics.median(rounds["seconds_sum"].to_pylist()) if rounds.num_rows else None


def _tiles(run: StoredRun) -> Element:
    result, usual = run.result, round_seconds(run)
    facts = [
        *_figures(run),
        *_worst_client(run),
        ("wall time", duration(result["seconds"]["total"]), f"a round takes {usual:.2g} s" if usual else None),
        ("to the server", size(result["bytes_up"]), f"to clients {size(result['bytes_down'])}"),
        ("seed", str(result["seed"]), f"digest {str(result['digest'])[:12]}"),
    ]
    tiles = [
        element("div", element("dt", name), element("dd", value, element("small", note) if note else None))
        for name, value, note in facts
    ]
    return element("dl", *tiles, class_="tiles")


def _figures(run: StoredRun) -> list[tuple[str, str, str | None]]:
    """A tile for each figure; of the headline, which way is better."""
    return [
        (
            as_words(figure.name),
            figure_text(run.result["figures"].get(figure.name), figure.unit),
            f"{figure.better} is better" if figure == run.headline else None,
        )
        for figure in run.figures
        if figure.name in run.result["figures"]
    ]


def _worst_client(run: StoredRun) -> list[tuple[str, str, str | None]]:
    """A tile for the client that is served worst, where the run says which."""
    spread = run.clients.spread(run.headline) if run.clients else None
    if spread is None:
        return []
    value, mean = (figure_text(number, run.headline.unit) for number in (spread.worst, spread.mean))
    return [("worst client", value, f"client {spread.client}; mean of clients {mean}")]


def _ranking(runs: Runs) -> str:
    headline = runs[0].headline
    ranked = _scores(runs)
    if not ranked:
        return f"In no run was {as_words(headline.name)} a number."
    (best, first), *others = ranked
    text = f"{first} ends best, with {as_words(headline.name)} {figure_text(best, headline.unit)} on the test set"
    if others:
        value, second = others[0]
        text += f", better than {second} by {difference_text(abs(best - value), headline.unit)}"
    return text + "."


def _scores(runs: Runs) -> list[tuple[float, str]]:
    """Each run's score and name, the best first; without those that are no number."""
    found = [(run.score, name) for name, run in zip(labels(runs), runs, strict=True) if not math.isnan(run.score)]
    return sorted(found, key=lambda pair: runs[0].headline.rank_key(pair[0]))


def _table(runs: Runs) -> Element:
    shared = [figure for figure in runs[0].figures if all(figure in run.figures for run in runs)]
    best = next((value for value, _ in _scores(runs)), None)
    names = [as_words(figure.name) for figure in shared]
    worst = ["worst client"] if all(run.clients for run in runs) else []
    columns = ("run", "preset", "seed", "rounds", *names, *worst, "up", "down", "time", "digest")
    head = element("tr", *(element("th", name) for name in columns))
    rows = [_row(name, run, shared, best, bool(worst)) for name, run in zip(labels(runs), runs, strict=True)]
    return element(
        "div", element("table", element("thead", head), element("tbody", *rows)), class_="scroll", tabindex="0"
    )


def _row(name: str, run: StoredRun, figures: Sequence[Figure], best: float | None, says_worst: bool) -> Element:
    result = run.result
    worst = [element("td", value) for _, value, _ in _worst_client(run)] or [element("td", "-")]
    values = [element("td", figure_text(result["figures"].get(figure.name), figure.unit)) for figure in figures]
    if run.score == best:
        values[0].set("class", "best")
    cells = [
        element("td", str(result["preset"])),
        element("td", str(result["seed"])),
        element("td", f"{result['rounds']:,}"),
        *values,
        *(worst if says_worst else ()),
        element("td", size(result["bytes_up"])),
        element("td", size(result["bytes_down"])),
        element("td", duration(result["seconds"]["total"])),
        element("td", element("code", str(result["digest"])[:8])),
    ]
    return element("tr", element("th", name, scope="row"), *cells)


def _differences(runs: Runs) -> str:
    """The settings that differ between runs: without them no two figures can be compared."""
    configs: list[dict[str, Any]] = [settings(dict(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    if "method.name" in differing:  # two methods have nothing but their name to compare
        differing = ["method", *(key for key in differing if not key.startswith("method."))]
    if not differing:
        return "The runs have the same configuration."
    more = len(differing) - _SHOWN_DIFFERENCES
    shown = ", ".join(differing[:_SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
    return f"The runs differ in {shown}; everything else is the same."
