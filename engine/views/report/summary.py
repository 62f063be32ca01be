"""The head of a report: what came out, in sentences and a few figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from engine.store.folder import StoredRun
from engine.units import duration, size
from engine.views.report.html import Element, element
from engine.views.report.words import count, labels, number, percent, settings

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
    result, clients = run.result, len(run.label_counts)
    text = (
        f"After {count(result['rounds'], 'round')} with {count(clients, 'client')}, the model of {result['method']} "
        f"is right on {percent(result['accuracy'])} of the test images"
    )
    earlier = [f"{name} {percent(share)}" for name, share in result["stages"].items() if name != "final"]
    return f"{text}; on the way there: {', '.join(earlier)}." if earlier else f"{text}."


def round_seconds(run: StoredRun) -> float | None:
    """Median wall time of a round; None without rounds."""
    rounds = run.seconds.group_by("round", use_threads=False).aggregate([("seconds", "sum")])
    return statistics.median(rounds["seconds_sum"].to_pylist()) if rounds.num_rows else None


def _tiles(run: StoredRun) -> Element:
    result, usual = run.result, round_seconds(run)
    facts = [
        ("accuracy", percent(result["accuracy"]), None),
        ("loss", number(result["loss"]), "mean cross-entropy"),
        ("wall time", duration(result["seconds"]["total"]), f"a round takes {usual:.2g} s" if usual else None),
        ("to the server", size(result["bytes_up"]), f"to clients {size(result['bytes_down'])}"),
        ("seed", str(result["seed"]), f"digest {str(result['digest'])[:12]}"),
    ]
    tiles = [
        element("div", element("dt", name), element("dd", value, element("small", note) if note else None))
        for name, value, note in facts
    ]
    return element("dl", *tiles, class_="tiles")


def _ranking(runs: Runs) -> str:
    ranked = sorted(
        ((run.result["accuracy"], name) for name, run in zip(labels(runs), runs, strict=True) if _measured(run)),
        key=lambda pair: -pair[0],
    )
    if not ranked:
        return "No run has an accuracy."
    (best, first), *others = ranked
    text = f"{first} ends highest, with {percent(best)} of the test images right"
    if others:
        share, second = others[0]
        text += f", {100 * (best - share):.1f} points ahead of {second}"
    return text + "."


def _measured(run: StoredRun) -> bool:
    return run.result["accuracy"] is not None


_COLUMNS = ("run", "preset", "seed", "rounds", "accuracy", "loss", "up", "down", "time", "digest")


def _table(runs: Runs) -> Element:
    best = max((run.result["accuracy"] for run in runs if _measured(run)), default=None)
    head = element("tr", *(element("th", name) for name in _COLUMNS))
    rows = [_row(name, run, best) for name, run in zip(labels(runs), runs, strict=True)]
    return element(
        "div", element("table", element("thead", head), element("tbody", *rows)), class_="scroll", tabindex="0"
    )


def _row(name: str, run: StoredRun, best: float | None) -> Element:
    result = run.result
    cells = [
        element("td", str(result["preset"])),
        element("td", str(result["seed"])),
        element("td", number(result["rounds"])),
        element("td", percent(result["accuracy"]), class_="best" if result["accuracy"] == best else None),
        element("td", number(result["loss"])),
        element("td", size(result["bytes_up"])),
        element("td", size(result["bytes_down"])),
        element("td", duration(result["seconds"]["total"])),
        element("td", element("code", str(result["digest"])[:8])),
    ]
    return element("tr", element("th", name, scope="row"), *cells)


def _differences(runs: Runs) -> str:
    """Which settings differ, because an accuracy beside another means nothing without it."""
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
