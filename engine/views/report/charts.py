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
    """A line over rounds, with marks beside it; y in [0, 1]."""

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
            low, high = low - 0.5 if whole else low - 0.05, high + 0.5 if whole else high + 0.05
        found = MaxNLocator(nbins=ticks, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
        if ends:
            return cls(float(found[0]), float(found[-1]), tuple(map(float, found)))
        return cls(low, high, tuple(float(t) for t in found if low <= t <= high))

    def at(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)


def curves(lines: Sequence[Curve]) -> Element:
    """Accuracy by round. Marks are named on the paper where there is one line, by hovering where there are several."""
    points = [point for line in lines for point in [*line.points, *((m.x, m.y) for m in line.marks)]]
    across = _Scale.over([x for x, _ in points], 8, whole=True, ends=False)
    upward = _Scale.over([y for _, y in points], 6, whole=False, ends=True)
    drawing = element(
        "svg", *_rules(across, upward, lines), viewBox="0 0 100 100", preserveAspectRatio="none", role="img"
    )
    drawing.set("aria-label", "accuracy by round")
    for index, line in enumerate(lines):
        drawing.extend(_line(line, index, across, upward))
    names = _mark_names(lines[0].marks, across, upward) if len(lines) == 1 else []
    return element(
        "div",
        element("div", *(_tick(f"{100 * t:.0f} %", "top", 100 - upward.at(t)) for t in upward.ticks), class_="y"),
        element("div", drawing, *names, class_="plot"),
        element("div", *(_tick(f"{t:.0f}", "left", across.at(t)) for t in across.ticks), class_="x"),
        class_="chart",
    )


def _tick(text: str, side: str, place: float) -> Element:
    return element("span", text, style=f"{side}:{place:.2f}%")


def _rules(across: _Scale, upward: _Scale, lines: Sequence[Curve]) -> list[Element]:
    level = [element("path", d=f"M0 {100 - upward.at(t):.2f}H100", class_="rule") for t in upward.ticks]
    stages = sorted({mark.x for line in lines for mark in line.marks})
    return level + [element("path", d=f"M{across.at(x):.2f} 0V100", class_="stage") for x in stages]


def _line(line: Curve, index: int, across: _Scale, upward: _Scale) -> list[Element]:
    places = [(across.at(x), 100 - upward.at(y)) for x, y in line.points]
    colour = f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
    drawn = [element("path", d="M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places), class_=f"line {colour}")]
    if len(places) <= _DOTTED:
        drawn += [
            _dot(x, y, f"dot {colour}", f"{line.name}, round {point[0]:.0f}: {100 * point[1]:.1f} %")
            for (x, y), point in zip(places, line.points, strict=True)
        ]
    for mark in line.marks:
        x, y = across.at(mark.x), 100 - upward.at(mark.y)
        text = f"{line.name}, {mark.name}, round {mark.x:.0f}: {100 * mark.y:.1f} %"
        drawn += [_dot(x, y, f"mark {colour}", text), _dot(x, y, "core", text)]
    return drawn


def _dot(x: float, y: float, class_: str, title: str) -> Element:
    """A line without length and with round ends: a circle that stays one when the drawing is stretched."""
    return element("path", element("title", title), d=f"M{x:.2f} {y:.2f}h0", class_=class_)


def _mark_names(marks: Sequence[Mark], across: _Scale, upward: _Scale) -> list[Element]:
    """The marks' names, pushed apart where they would lie on one another, on the side that has more room."""
    names = []
    for x in sorted({mark.x for mark in marks}):
        here = sorted((m for m in marks if m.x == x), key=lambda m: -m.y)
        left = across.at(x)
        side = f"right:calc({100 - left:.2f}% + 9px)" if left > 60 else f"left:calc({left:.2f}% + 9px)"
        for mark, top in zip(here, spread([100 - upward.at(m.y) for m in here], _MARK_GAP), strict=True):
            text = f"{mark.name} {100 * mark.y:.1f}"
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
    """What the colours mean."""
    classes = classes or [f"c{i % COLOURS}" + (" dashed" if i >= COLOURS else "") for i in range(len(names))]
    items = [element("li", element("i", class_=colour), name) for name, colour in zip(names, classes, strict=True)]
    return element("ul", *items, class_="legend")


@dataclass(frozen=True)
class Bar:
    """A name, an amount >= 0 and its text; `note` stands under the name."""

    name: str
    amount: float
    text: str
    note: str | None = None


def bars(rows: Sequence[Bar], whole: float | None = None, colour: str = "c0") -> Element:
    """Amounts as lengths, of the largest or of `whole`."""
    largest = whole or max((row.amount for row in rows), default=0) or 1
    return element("div", *(_bar(row, largest, colour) for row in rows), class_="bars")


def _bar(row: Bar, largest: float, colour: str) -> Element:
    name = element("span", row.name, element("small", row.note) if row.note else None, class_="name", title=row.name)
    filled = element("i", class_=colour, style=f"width:{100 * row.amount / largest:.2f}%")
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
        return element("div", label, element("div", class_="track"), element("span", "no test images", class_="num"))
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


def label_map(counts: np.ndarray, class_names: Sequence[str]) -> Element:
    """How many examples of each class (rows) each client (columns) holds; colour deepens with the root.

    Args:
        counts: int64 (clients, classes).
    """
    clients, classes = counts.shape
    height = min(max(560 / classes, 6), 28)
    step = math.ceil(15 / height)
    shares = np.sqrt(counts.T / max(1, int(counts.max())))
    names = [
        element("span", class_names[c], style=f"top:{100 * (c + 0.5) / classes:.3f}%", title=class_names[c])
        for c in range(0, classes, step)
    ]
    every = math.ceil(clients / 20)
    numbers = [_tick(str(k), "left", 100 * (k + 0.5) / clients) for k in range(0, clients, every)]
    few = clients <= _FEW and classes <= _FEW
    return element(
        "div",
        element("div", *names, class_="y"),
        element(
            "div",
            element("img", src=data_uri(heat(shares)), alt=f"examples of {classes} classes held by {clients} clients"),
            _counts(counts, shares) if few else None,
            class_="plot",
            style=f"height:{round(height * classes)}px",
        ),
        element("div", *numbers, class_="x"),
        class_="map",
    )


def _counts(counts: np.ndarray, shares: np.ndarray) -> Element:
    cells = [
        element("span", str(count) if count else None, class_="dark" if share > 0.6 else None)
        for count, share in zip(counts.T.ravel().tolist(), shares.ravel().tolist(), strict=True)
    ]
    return element("div", *cells, class_="counts", style=f"grid-template-columns:repeat({len(counts)},1fr)")
