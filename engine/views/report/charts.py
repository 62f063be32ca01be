"""Curves, bars, pairs and maps as HTML.

Positions are percentages and words are HTML text beside the drawing, so that a chart is as wide as its paper and its
words keep their size on a phone. Colours are the style sheet's, so that a chart is readable on dark paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from algorithms.core.task import Figure
from engine.units import figure_digits, figure_text
from engine.views.report.html import Element, data_uri, element
from engine.views.report.pictures import heat

COLOURS = 6
"""Colours that the style sheet has for runs; a seventh run takes the first colour again, dashed."""

_DOTTED = 60
_FEW = 12
_MARK_GAP = 7.0


@dataclass(frozen=True)
class Mark:
    """A single point with a name, such as a stage."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Curve:
    """A line over rounds, with marks beside it. Points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class _Scale:
    """Numbers to percent of the drawing, from the left or from the bottom."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], ticks: int, whole: bool, ends: bool) -> _Scale:
        """A scale with round ticks; `ends` widens it to ticks on both sides."""
        low, high = min(values), max(values)
        if low == high:
            margin = 0.5 if whole else 0.05 * (abs(low) or 1.0)
            low, high = low - margin, high + margin
        found = MaxNLocator(nbins=ticks, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
        if ends:
            return cls(float(found[0]), float(found[-1]), tuple(map(float, found)))
        return cls(low, high, tuple(float(t) for t in found if low <= t <= high))

    def at(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)


def whole_of(figure: Figure) -> float | None:
    """The length of a whole bar: everything for a share; None, the longest of the bars, for any other figure."""
    return 1.0 if figure.unit == "%" else None


def curves(lines: Sequence[Curve], name: str, unit: str) -> Element | None:
    """A figure by round. Marks are named on the paper where there is one line, by hovering where there are several.

    Args:
        name: of the figure.
        unit: see `Figure`; shares are in [0, 1].

    Returns:
        None where no point is finite.
    """
    lines = [_finite(line) for line in lines]
    points = [point for line in lines for point in [*line.points, *((m.x, m.y) for m in line.marks)]]
    if not points:
        return None
    across = _Scale.over([x for x, _ in points], 8, whole=True, ends=False)
    upward = _Scale.over([y for _, y in points], 6, whole=False, ends=True)
    drawing = element(
        "svg", *_rules(across, upward, lines), viewBox="0 0 100 100", preserveAspectRatio="none", role="img"
    )
    drawing.set("aria-label", f"{name} by round")
    for index, line in enumerate(lines):
        drawing.extend(_line(line, index, across, upward, unit))
    names = _mark_names(lines[0].marks, across, upward, unit) if len(lines) == 1 else []
    return element(
        "div",
        element("div", *(_tick(_tick_text(t, unit), "top", 100 - upward.at(t)) for t in upward.ticks), class_="y"),
        element("div", drawing, *names, class_="plot"),
        element("div", *(_tick(f"{t:.0f}", "left", across.at(t)) for t in across.ticks), class_="x"),
        class_="chart",
    )


def _finite(line: Curve) -> Curve:
    points = [point for point in line.points if math.isfinite(point[1])]
    return Curve(line.name, points, [mark for mark in line.marks if math.isfinite(mark.y)])


def _tick_text(value: float, unit: str) -> str:
    return f"{100 * value:.4g} %" if unit == "%" else f"{value:,.6g}"


def _tick(text: str, side: str, place: float) -> Element:
    return element("span", text, style=f"{side}:{place:.2f}%")


def _rules(across: _Scale, upward: _Scale, lines: Sequence[Curve]) -> list[Element]:
    level = [element("path", d=f"M0 {100 - upward.at(t):.2f}H100", class_="rule") for t in upward.ticks]
    stages = sorted({mark.x for line in lines for mark in line.marks})
    return level + [element("path", d=f"M{across.at(x):.2f} 0V100", class_="stage") for x in stages]


def _line(line: Curve, index: int, across: _Scale, upward: _Scale, unit: str) -> list[Element]:
    places = [(across.at(x), 100 - upward.at(y)) for x, y in line.points]
    colour = f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
    drawn = [element("path", d=path, class_=f"line {colour}")] if places else []
    if len(places) <= _DOTTED:
        drawn += [
            _dot(x, y, f"dot {colour}", f"{line.name}, round {point[0]:.0f}: {figure_text(point[1], unit)}")
            for (x, y), point in zip(places, line.points, strict=True)
        ]
    for mark in line.marks:
        x, y = across.at(mark.x), 100 - upward.at(mark.y)
        text = f"{line.name}, {mark.name}, round {mark.x:.0f}: {figure_text(mark.y, unit)}"
        drawn += [_dot(x, y, f"mark {colour}", text), _dot(x, y, "core", text)]
    return drawn


def _dot(x: float, y: float, class_: str, title: str) -> Element:
    """A line without length and with round ends: a circle that stays one when the drawing is stretched."""
    return element("path", element("title", title), d=f"M{x:.2f} {y:.2f}h0", class_=class_)


def _mark_names(marks: Sequence[Mark], across: _Scale, upward: _Scale, unit: str) -> list[Element]:
    """The marks' names, pushed apart where they would lie on one another, on the side that has more room."""
    names = []
    for x in sorted({mark.x for mark in marks}):
        here = sorted((m for m in marks if m.x == x), key=lambda m: -m.y)
        left = across.at(x)
        side = f"right:calc({100 - left:.2f}% + 9px)" if left > 60 else f"left:calc({left:.2f}% + 9px)"
        for mark, top in zip(here, spread([100 - upward.at(m.y) for m in here], _MARK_GAP), strict=True):
            text = f"{mark.name} {figure_digits(mark.y, unit)}"
            names.append(element("span", text, class_="name", style=f"{side};top:{top:.2f}%"))
    return names


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in percent, moved so that each is at least `gap` after the one before it and all end by 100."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = 100.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def legend(names: Sequence[str], classes: Sequence[str] | None = None) -> Element:
    """The legend of the colours."""
    classes = classes or [f"c{i % COLOURS}" + (" dashed" if i >= COLOURS else "") for i in range(len(names))]
    items = [element("li", element("i", class_=colour), name) for name, colour in zip(names, classes, strict=True)]
    return element("ul", *items, class_="legend")


@dataclass(frozen=True)
class Bar:
    """A name, an amount and its text; `note` stands under the name. Only a finite amount above 0 has a length."""

    name: str
    amount: float
    text: str
    note: str | None = None


def bars(rows: Sequence[Bar], whole: float | None = None, colour: str = "c0") -> Element:
    """Amounts as lengths, of the largest or of `whole`."""
    largest = whole or max(map(_length, rows), default=0) or 1
    return element("div", *(_bar(row, largest, colour) for row in rows), class_="bars")


def _length(row: Bar) -> float:
    return row.amount if math.isfinite(row.amount) and row.amount > 0 else 0.0


def _bar(row: Bar, largest: float, colour: str) -> Element:
    name = element("span", row.name, element("small", row.note) if row.note else None, class_="name", title=row.name)
    filled = element("i", class_=colour, style=f"width:{100 * _length(row) / largest:.2f}%")
    return element("div", name, element("div", filled, class_="track"), element("span", row.text, class_="num"))


def pairs(names: Sequence[str], before: np.ndarray, after: np.ndarray) -> Element:
    """Two shares in [0, 1] for each name, joined by a line; NaN in either leaves the row without.

    More than twelve names are put in the order of the difference, largest first.
    """
    order = list(range(len(names)))
    if len(order) > _FEW:
        order.sort(key=lambda i: -np.nan_to_num(after[i] - before[i], nan=-2.0))
    rows = [_pair(names[i], float(before[i]), float(after[i])) for i in order]
    return element("div", *rows, class_="pairs" + ("" if len(order) <= _FEW else " many"))


def _pair(name: str, before: float, after: float) -> Element:
    label = element("span", name, class_="name", title=name)
    if math.isnan(before) or math.isnan(after):
        return element("div", label, element("div", class_="track"), element("span", "no test examples", class_="num"))
    low, high = sorted((before, after))
    track = element(
        "div",
        element(
            "i",
            class_="link up" if after >= before else "link down",
            style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%",
        ),
        element("i", class_="before", style=f"left:{100 * before:.2f}%"),
        element("i", class_="after", style=f"left:{100 * after:.2f}%"),
        class_="track",
    )
    return element("div", label, track, element("span", f"{100 * before:.0f} → {100 * after:.0f}", class_="num"))


def holdings(counts: np.ndarray, class_names: Sequence[str]) -> Element:
    """A chart of the clients' holdings: a label map; where there are no classes, a bar for each client.

    Args:
        counts: int64 (clients, classes), or (clients, 1) without classes.
    """
    return label_map(counts, class_names) if class_names else client_sizes(counts.sum(axis=1))


def client_sizes(sizes: np.ndarray) -> Element:
    """A bar for each client, as high as its number of examples, int64 (clients,)."""
    clients = len(sizes)
    upward = _Scale.over([0.0, float(max(1, sizes.max()))], 4, whole=True, ends=True)
    drawing = element("svg", *_rules(upward, upward, ()), viewBox="0 0 100 100", preserveAspectRatio="none", role="img")
    drawing.set("aria-label", f"examples held by {clients} clients")
    for client, held in enumerate(sizes.tolist()):
        drawing.append(_column(client, held, clients, upward.at(held)))
    return element(
        "div",
        element("div", *(_tick(f"{t:,.0f}", "top", 100 - upward.at(t)) for t in upward.ticks), class_="y"),
        element("div", drawing, class_="plot"),
        element("div", *_client_numbers(clients), class_="x"),
        class_="chart low",
    )


def _column(client: int, examples: int, clients: int, height: float) -> Element:
    width = 100 / clients
    return element(
        "rect",
        element("title", f"client {client}: {examples:,}"),
        x=f"{(client + 0.1) * width:.3f}",
        width=f"{0.8 * width:.3f}",
        y=f"{100 - height:.2f}",
        height=f"{height:.2f}",
        class_="column c0",
    )


def _client_numbers(clients: int) -> list[Element]:
    """Numbers of at most twenty clients, under the middles of their columns."""
    return [_tick(str(k), "left", 100 * (k + 0.5) / clients) for k in range(0, clients, math.ceil(clients / 20))]


def label_map(counts: np.ndarray, class_names: Sequence[str]) -> Element:
    """A map of the examples of each class (rows) that each client (columns) holds; colour deepens with the root.

    Args:
        counts: int64 (clients, classes).
    """
    clients, classes = counts.shape
    shares = np.sqrt(counts.T / max(1, int(counts.max())))
    words = f"examples of {classes} classes held by {clients} clients"
    return _map(counts.T, shares, class_names, _client_numbers(clients), words)


def confusion_map(confusion: np.ndarray, class_names: Sequence[str]) -> Element:
    """Examples by class (rows) and predicted class (columns); colour is the share of the row.

    Args:
        confusion: int64 (classes, classes).
    """
    classes = len(class_names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    room = 90 // classes
    fits = all(len(name) <= room for name in class_names)
    columns = [
        _tick(class_names[c], "left", 100 * (c + 0.5) / classes) for c in range(classes if fits and room > 2 else 0)
    ]
    words = f"test examples by their class and the predicted one, of {classes} classes"
    return _map(confusion, shares, class_names, columns, words)


def _map(
    counts: np.ndarray, shares: np.ndarray, row_names: Sequence[str], columns: Sequence[Element], words: str
) -> Element:
    """Counts (rows, columns) as colours, shares in [0, 1], with the numbers themselves where there are few."""
    rows = len(row_names)
    height = min(max(560 / rows, 6), 28)
    names = [
        element("span", row_names[r], style=f"top:{100 * (r + 0.5) / rows:.3f}%", title=row_names[r])
        for r in range(0, rows, math.ceil(15 / height))
    ]
    few = max(counts.shape) <= _FEW
    return element(
        "div",
        element("div", *names, class_="y"),
        element(
            "div",
            element("img", src=data_uri(heat(shares)), alt=words),
            _counts(counts, shares) if few else None,
            class_="plot",
            style=f"height:{round(height * rows)}px",
        ),
        element("div", *columns, class_="x"),
        class_="map",
    )


def _counts(counts: np.ndarray, shares: np.ndarray) -> Element:
    cells = [
        element("span", str(count) if count else None, class_="dark" if share > 0.6 else None)
        for count, share in zip(counts.ravel().tolist(), shares.ravel().tolist(), strict=True)
    ]
    return element("div", *cells, class_="counts", style=f"grid-template-columns:repeat({counts.shape[1]},1fr)")
