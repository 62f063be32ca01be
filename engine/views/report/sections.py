"""The sections of a report, each of all runs; a section about which the runs have nothing to say is None."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.cohort.delivery import NOBODY
from actors.failures import describe
from algorithms.core.task import Figure
from engine.config.reading import dump
from engine.records import GLOBAL, VALIDATION, GeneratedPictures
from engine.store.folder import StoredRun
from engine.store.tables import faults_of
from engine.units import difference_text, figure_text, size
from engine.views.report.charts import (
    Bar,
    Curve,
    Mark,
    bars,
    confusion_map,
    curves,
    holdings,
    legend,
    pairs,
    whole_of,
)
from engine.views.report.html import Element, data_uri, element
from engine.views.report.pictures import grid
from engine.views.report.words import FINAL, as_words, captions, count, labels, stages

Runs = Sequence[StoredRun]

_GRID_COLUMNS = 10
_MANY_CLASSES = 12


def _section(title: str, *children: Element | str | None) -> Element:
    return element("section", element("h2", title), *children)


def _note(text: str) -> Element:
    return element("p", text, class_="note")


def _each(runs: Runs, draw: Callable[[StoredRun], Element | None]) -> list[Element]:
    """One block for each run that has something to show, under its name where there are several runs."""
    blocks = [(name, draw(run)) for name, run in zip(labels(runs), runs, strict=True)]
    if len(runs) == 1:
        return [block for _, block in blocks if block is not None]
    return [element("div", element("h3", name), block, class_="of-run") for name, block in blocks if block is not None]


def by_round(runs: Runs) -> Element | None:
    """The headline figure by round, with the stages as marks."""
    headline = runs[0].headline
    lines = [_curve(name, run) for name, run in zip(labels(runs), runs, strict=True)]
    drawn = curves(lines, headline.name, headline.unit)
    if drawn is None or not any(line.points for line in lines):
        return None
    marked = any(line.marks for line in lines)
    return _section(
        "Round by round",
        legend([line.name for line in lines]) if len(lines) > 1 else None,
        drawn,
        _note(
            f"The model's {as_words(headline.name)} on the whole test set, which decides nothing in the run; "
            f"{headline.better} is better." + (" Rings are stages of a round." if marked else "")
        ),
    )


def _curve(name: str, run: StoredRun) -> Curve:
    own = [(r.round + 1, r.evaluation.headline) for r in run.stages if r.stage == GLOBAL]
    staged = [r for r in run.stages if r.stage not in (GLOBAL, VALIDATION)]
    marks = [Mark(r.round + 1, r.evaluation.headline, r.stage) for r in staged]
    return Curve(name, own, marks)


def stage_bars(runs: Runs) -> Element | None:
    """The headline figure of each stage."""
    blocks = _each(runs, _stage_bars)
    headline = runs[0].headline
    note = _note(f"The {as_words(headline.name)} on the test set; {headline.better} is better.")
    return _section("Stage by stage", *blocks, note) if blocks else None


def _stage_bars(run: StoredRun) -> Element | None:
    shown = stages(run)
    if set(shown) <= {FINAL}:
        return None
    words = captions(run)
    rows = [
        Bar(name, e.headline, figure_text(e.headline, run.headline.unit), words.get(name)) for name, e in shown.items()
    ]
    return bars(rows, whole=whole_of(run.headline))


def per_class(runs: Runs) -> Element | None:
    """A stage against an earlier one, class by class; and of two runs, the one's last model against the other's."""
    blocks: list[Element | None] = [*_each(runs, _stage_pairs)]
    if len(runs) == 1 and not blocks:
        blocks = [_class_bars(run) for run in runs if _shares(run, FINAL)]
    elif len(runs) == 2 and runs[0].class_names == runs[1].class_names and all(_shares(run, FINAL) for run in runs):
        headline = runs[0].headline
        named = zip(labels(runs), runs, strict=True)
        better, worse = sorted(named, key=lambda pair: headline.rank_key(pair[1].score))
        blocks.append(_final_pairs(worse, better))
    return _section("Class by class", *blocks) if blocks else None


def _stage_pairs(run: StoredRun) -> Element | None:
    shown = stages(run)
    compared = [(stage.against, stage.name) for stage in run.captions if stage.against]
    compared += [(stage.name, FINAL) for stage in run.captions]
    found = next((pair for pair in compared if shown.keys() >= set(pair)), None)
    if found is None:
        return None
    return _pairs((found[0], run, found[0]), (found[1], run, found[1]))


def _final_pairs(worse: tuple[str, StoredRun], better: tuple[str, StoredRun]) -> Element | None:
    drawn = _pairs((*worse, FINAL), (*better, FINAL))
    title = f"{better[0]} against {worse[0]}, after the last round"
    return element("div", element("h3", title), drawn, class_="of-run")


@dataclass(frozen=True)
class _Shares:
    """A figure by class that is a share: float64 (classes,) in [0, 1], NaN for a class without test examples."""

    figure: Figure
    values: np.ndarray


def _shares(run: StoredRun, stage: str) -> _Shares | None:
    """The first figure of a stage that is a share and known by class."""
    shown = stages(run)
    by_class = shown[stage].by_class if stage in shown else {}
    shares = (_Shares(figure, by_class[figure.name]) for figure in run.figures if figure.name in by_class)
    return next((found for found in shares if found.figure.unit == "%"), None)


def _class_bars(run: StoredRun) -> Element | None:
    """A bar for each class; of many classes the lowest."""
    found = _shares(run, FINAL)
    if found is None:
        return None
    rows = [(value, name) for value, name in zip(found.values.tolist(), run.class_names, strict=True)]
    if len(rows) > _MANY_CLASSES:
        rows = sorted((row for row in rows if not math.isnan(row[0])), key=lambda row: row[0])[:_MANY_CLASSES]
    shown = [Bar(name, value, figure_text(value, found.figure.unit)) for value, name in rows]
    few = len(shown) < len(run.class_names)
    words = f"The {as_words(found.figure.name)} among the test examples of each class"
    words += f"; the lowest {len(shown)} of {len(run.class_names)} classes." if few else "."
    return element("div", bars(shown, whole=1.0), _note(words))


def _pairs(before: tuple[str, StoredRun, str], after: tuple[str, StoredRun, str]) -> Element | None:
    """Two stages, each by its name on paper, run and stage, class by class."""
    first, second = _shares(*before[1:]), _shares(*after[1:])
    if first is None or second is None:
        return None
    gain = second.values - first.values
    up, down = int((gain > 0).sum()), int((gain < 0).sum())
    better, worse = (up, down) if first.figure.better == "higher" else (down, up)
    tested = int((~np.isnan(gain)).sum())
    sentence = f"With {after[0]}, of {count(tested, 'class', 'classes')}: {better} better, {worse} worse."
    return element(
        "div",
        legend([before[0], after[0]], ["before", "after"]),
        pairs(before[1].class_names, first.values, second.values),
        _note(f"{sentence} Figures are the {as_words(first.figure.name)} on the test set, in percent."),
    )


def confusion(runs: Runs) -> Element | None:
    """The confusion matrix: predictions for the examples of each class."""
    blocks = _each(runs, _confusion)
    note = _note(
        "Test examples after the last round. Rows are their classes, columns the classes that were predicted, in the "
        "same order; colour is the share of the row."
    )
    return _section("Confusion matrix", *blocks, note) if blocks else None


def _confusion(run: StoredRun) -> Element | None:
    return None if run.confusion is None else confusion_map(run.confusion, run.class_names)


_MANY_CLIENTS = 20


def by_client(runs: Runs) -> Element | None:
    """The headline figure of each client, on test examples of its own."""
    blocks = _each(runs, _client_bars)
    note = _note(
        "Each client's share of the test set is dealt as its training examples are; on it stands the model that would "
        "predict for the client after the last round."
    )
    return _section("Client by client", *blocks, note) if blocks else None


def _client_bars(run: StoredRun) -> Element | None:
    """A bar for each client; of many clients the worst."""
    spread = run.clients.spread(run.headline) if run.clients else None
    if run.clients is None or spread is None:
        return None
    headline, values = run.headline, run.clients.values[run.headline.name]
    rows = [(value, client) for client, value in enumerate(values.tolist()) if not math.isnan(value)]
    if len(rows) > _MANY_CLIENTS:
        rows = sorted(rows, key=lambda row: headline.rank_key(row[0]))[-_MANY_CLIENTS:][::-1]
    shown = [
        Bar(
            f"client {client}",
            value,
            figure_text(value, headline.unit),
            count(int(run.clients.examples[client]), "test example"),
        )
        for value, client in rows
    ]
    words = (
        f"The {as_words(headline.name)} is {figure_text(spread.mean, headline.unit)} in the mean of "
        f"{count(spread.clients, 'client')}, with a standard deviation of "
        f"{difference_text(spread.deviation, headline.unit)}; client {spread.client} is served worst, with "
        f"{figure_text(spread.worst, headline.unit)}."
    )
    words += f" The {len(rows)} worst are shown." if len(rows) < spread.clients else ""
    return element("div", element("p", words), bars(shown, whole=whole_of(headline)))


_LABEL_MAP = "Rows are classes, columns clients by number; colour deepens with the root of the number of examples."


def clients(runs: Runs) -> Element:
    """The clients' holdings."""
    same = all(np.array_equal(run.label_counts, runs[0].label_counts) for run in runs)
    maps = _each(runs[:1] if same else runs, lambda run: holdings(run.label_counts, run.class_names))
    sizes = runs[0].label_counts.sum(axis=1)
    dealt = f"{count(int(sizes.sum()), 'training example')} over {count(len(sizes), 'client')}"
    words = f"{dealt}, {sizes.min():,} to {sizes.max():,} each. "
    return _section(
        "Who holds what",
        *maps,
        _note(
            (words if same else "")
            + (_LABEL_MAP if runs[0].class_names else "Bars are training examples, clients by number.")
        ),
    )


def pictures(runs: Runs) -> Element | None:
    """Generated pictures beside real ones, client by client."""
    blocks = _each(runs, _pictures)
    if not blocks:
        return None
    return _section(
        "Generated beside real",
        _note(
            "What each client's generator draws, and examples that the client holds. The run allows them to be shown."
        ),
        *blocks,
    )


def _pictures(run: StoredRun) -> Element | None:
    cards = [_card(shown, run.class_names) for shown in run.pictures]
    return element("div", *cards, class_="cards") if cards else None


def _card(figures: GeneratedPictures, names: Sequence[str]) -> Element:
    return element(
        "figure",
        element("figcaption", f"client {figures.client}"),
        _sheet("generated", figures.generated, figures.labels, names),
        _sheet("real", figures.real, figures.real_labels, names),
    )


def _sheet(title: str, sheet: np.ndarray, of: np.ndarray, names: Sequence[str]) -> Element:
    asked = [names[label] for label in of.tolist() if label >= 0]
    if not len(sheet):
        return element("div", element("small", title), element("p", "none"))
    text = f"{title}: {', '.join(asked)}" if asked else title
    picture = element("img", src=data_uri(grid(sheet, _GRID_COLUMNS)), alt=text, title=text)
    return element("div", element("small", title), picture)


def seconds(runs: Runs) -> Element:
    """Wall time by phase."""
    longest = max(s for run in runs for _, s in phases(run.result["seconds"]))
    blocks = _each(runs, lambda run: _seconds(run, longest))
    return _section("Time by phase", *blocks, _note("Wall time; every moment belongs to one phase."))


def _seconds(run: StoredRun, longest: float) -> Element:
    return bars([Bar(name, s, f"{s:.1f} s") for name, s in phases(run.result["seconds"])], longest)


def phases(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Seconds of result.json as parts that add up to the total.

    `client:train` becomes `clients: train`, and what `clients` has beyond its parts is `clients, otherwise`.
    """
    rows = [("start", seconds.get("start", 0.0))]
    for group, prefix in (("clients", "client:"), ("server", "server:")):
        parts = [(f"{group}: {key.removeprefix(prefix)}", s) for key, s in seconds.items() if key.startswith(prefix)]
        rest = seconds.get(group, 0.0) - sum(s for _, s in parts)
        rows += [*parts, (f"{group}, otherwise" if parts else group, rest)]
    rows.append(("evaluate", seconds.get("evaluate", 0.0)))
    rows.append(("everything else", seconds["total"] - sum(s for _, s in rows)))
    return [(name, s) for name, s in rows if s >= 0.0005 * seconds["total"]]


def traffic(runs: Runs) -> Element | None:
    """Bytes by kind and direction."""
    largest = max((n for run in runs for n in _sums(run.ledger).values()), default=0)
    blocks = _each(runs, lambda run: _traffic(run, largest))
    return _section("What crossed the network", *blocks, _note("Exact bytes of the payloads.")) if blocks else None


def _traffic(run: StoredRun, largest: int) -> Element | None:
    sent = _sums(run.ledger)
    if not sent:
        return None
    kinds = sorted({kind for kind, _ in sent}, key=lambda kind: -sum(n for (k, _), n in sent.items() if k == kind))
    columns = [
        element(
            "div",
            element("h4", title),
            bars(
                [Bar(as_words(k), sent.get((k, way), 0), size(sent.get((k, way), 0))) for k in kinds], largest, colour
            ),
        )
        for way, title, colour in (("up", "clients to server", "c0"), ("down", "server to clients", "c1"))
    ]
    return element("div", *columns, class_="columns")


def _sums(ledger: pa.Table) -> dict[tuple[str, str], int]:
    """Bytes by kind and direction."""
    rows = ledger.group_by(["kind", "direction"], use_threads=False).aggregate([("bytes", "sum")]).to_pylist()
    return {(row["kind"], row["direction"]): row["bytes_sum"] for row in rows}


def left_clients(runs: Runs) -> Element | None:
    """A summary of what left the clients, in words."""
    blocks = _each(runs, _left_clients)
    return _section("What left the clients", *blocks) if blocks else None


def _left_clients(run: StoredRun) -> Element | None:
    up = run.ledger.filter(pc.field("direction") == "up")
    rows = up.group_by("kind", use_threads=False).aggregate(
        [("bytes", "sum"), ("bytes", "count"), ("bytes", "max"), ("client", "count_distinct")]
    )
    if not rows.num_rows:
        return None
    lines = [
        element(
            "div",
            element("dt", as_words(row["kind"])),
            element(
                "dd",
                run.kinds.get(row["kind"]) or "a kind of which nothing is said",
                element(
                    "small",
                    f"{count(row['bytes_count'], 'message')} of {count(row['client_count_distinct'], 'client')}, "
                    f"{size(row['bytes_sum'])} in all, {size(row['bytes_max'])} at most",
                ),
            ),
        )
        for row in rows.sort_by([("bytes_sum", "descending")]).to_pylist()
    ]
    forbidden = run.config.get("privacy", {}).get("forbid") or ()
    words = "A method must declare what it sends, and raw data is no kind of content. "
    words += f"This run forbade {', '.join(forbidden)}." if forbidden else ""
    return element("div", element("dl", *lines, class_="kinds"), _note(words))


def faults(runs: Runs) -> Element | None:
    """The faults of the run, and the actions taken."""
    blocks = _each(runs, _faults)
    note = _note(
        "A step that is tried again gives the same bits; a client that is left out sends nothing in that step."
    )
    return _section("What went wrong", *blocks, note) if blocks else None


def _faults(run: StoredRun) -> Element | None:
    found: dict[str, list[str]] = {}
    for fault in faults_of(run.rounds):
        who = "" if fault.client == NOBODY else f", client {fault.client}"
        place = f"round {fault.round + 1}, {fault.phase}{who}"
        found.setdefault(describe(fault.fault, fault.action), []).append(place)
    return _terms({words: "; ".join(places) for words, places in found.items()}) if found else None


def settings(runs: Runs) -> Element:
    """Configuration, circumstances, versions, and how to do it again."""
    return _section("Settings, and how to do it again", *_each(runs, _settings))


def _settings(run: StoredRun) -> Element:
    name = run.folder.resolve().name
    command = f"tessera run {shlex.quote(f'{name}/config.yaml')} --out {shlex.quote(f'{name}-again')}"
    return element(
        "div",
        element("p", "From the folder that holds this run's folder:"),
        element("pre", command),
        element(
            "p", "The same bits come out where the digest is ", element("code", str(run.result["digest"])), _where(run)
        ),
        element("details", element("summary", "Circumstances"), _terms({**run.facts, **_circumstances(run)})),
        element("details", element("summary", "Versions"), _terms(run.result["versions"])),
        element("details", element("summary", "Configuration"), element("pre", _yaml(run))),
    )


def _where(run: StoredRun) -> str:
    """The processors that give a run's digest, as the end of a sentence."""
    if run.config.get("runner", {}).get("bits") == "portable":
        return ", on every x86-64 processor with AVX2 (bits: portable)."
    kinds = list(run.result["processors"])
    if len(kinds) == 1:
        return f", on a processor of this kind: {kinds[0]}."
    words = "; ".join(f"{kind} ({', '.join(who)})" for kind, who in run.result["processors"].items())
    return f"; but it depends on who computed what, since the processors differ: {words}."


def _circumstances(run: StoredRun) -> dict[str, str]:
    memory = run.result.get("peak_rss_mb") or {}
    return {f"peak memory, {who.replace('_', ' ')}": f"{amount:,.0f} MiB" for who, amount in memory.items() if amount}


def _terms(values: dict[str, str]) -> Element:
    rows = [element("div", element("dt", str(k)), element("dd", str(v))) for k, v in values.items()]
    return element("dl", *rows, class_="terms")


def _yaml(run: StoredRun) -> str:
    return dump(dict(run.config))
