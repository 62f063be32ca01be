"""A partition for the eye: a picture and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from engine.partition.lettering import Lettering
from engine.partition.partition import Partition

_FEW_CLASSES = 12
_FEW_CLIENTS = 25
_NAME_LENGTH = 24
_PALE_TO_DARK = LinearSegmentedColormap.from_list("counts", ["#cfe3f5", "#5b9bd0", "#1c5a9c", "#0a2350"])


def table(partition: Partition, labels: np.ndarray | None, class_names: Sequence[str]) -> str:
    """One line per client: its number of examples, how many classes it holds, and with few classes each class's count.

    Args:
        labels: int64, (N,), of the training rows; None where they have no class, and only examples are counted.
    """
    lines = (
        _sizes(partition) if labels is None else _class_counts(partition.counts(labels, len(class_names)), class_names)
    )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*drawn, *_notes(partition)])


def _sizes(partition: Partition) -> list[list[str]]:
    sizes = [*enumerate(partition.sizes), ("all", partition.sizes.sum())]
    return [["client", "examples"], *([str(name), f"{size:,}"] for name, size in sizes)]


def _class_counts(counts: np.ndarray, class_names: Sequence[str]) -> list[list[str]]:
    few = len(class_names) <= _FEW_CLASSES
    lines = [["client", "examples", "classes", *(class_names if few else ())]]
    for name, row in [*enumerate(counts), ("all", counts.sum(axis=0))]:
        cells = [f"{count:,}" if count else "." for count in row] if few else []
        lines.append([str(name), f"{row.sum():,}", str(np.count_nonzero(row)), *cells])
    return lines


def _notes(partition: Partition) -> list[str]:
    if not partition.moved:
        return []
    return [f"examples moved to clients that {partition.kind} had left short: {partition.moved:,}"]


def draw(partition: Partition, labels: np.ndarray | None, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG: class x client, coloured by the number of examples, above the size of each client.

    Args:
        labels: int64, (N,), of the training rows; None where they have no class, and only sizes are drawn.
        class_names: () where they have none.
    """
    counts = partition.counts(labels, len(class_names))
    who_holds_what(counts, class_names, partition.kind, _notes(partition)).savefig(path, format="png")


def who_holds_what(counts: np.ndarray, class_names: Sequence[str], kind: str, notes: Sequence[str] = ()) -> Figure:
    """A label map; where there are no classes, a bar for each client.

    Args:
        counts: int64, (clients, classes), or (clients, 1) without classes.
        kind: of the partition.
        notes: lines below the title.
    """
    if class_names:
        return label_map(counts, class_names, kind, notes)
    return size_bars(counts.sum(axis=1), kind, notes)


def size_bars(sizes: np.ndarray, kind: str, notes: Sequence[str] = ()) -> Figure:
    """A bar for each client, as high as its number of examples.

    Args:
        sizes: int64, (clients,).
        kind: of the partition.
        notes: lines below the title.
    """
    figure = Figure(figsize=(_width(len(sizes)), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(_title(kind, f"{len(sizes):,} clients, {sizes.sum():,} examples", notes), loc="left", fontsize=10)
    _draw_sizes(axes, sizes)
    return figure


def label_map(counts: np.ndarray, class_names: Sequence[str], kind: str, notes: Sequence[str] = ()) -> Figure:
    """Class x client, coloured by the number of examples, above the size of each client.

    Args:
        counts: int64, (clients, classes).
        kind: of the partition.
        notes: lines below the title.
    """
    clients, counts = len(counts), counts.T
    # Inches, as for the width.
    height = min(max(0.34 * len(class_names), 2.5), 11.0)
    figure = Figure(figsize=(_width(clients), height + 2.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    map_axes, size_axes = figure.subplots(2, 1, sharex=True, height_ratios=[height, 1])
    total = f"{clients:,} clients, {counts.sum():,} examples, {len(class_names)} classes"
    map_axes.set_title(_title(kind, total, notes), loc="left", fontsize=10)
    _draw_map(figure, map_axes, counts, class_names)
    _draw_sizes(size_axes, counts.sum(axis=0))
    return figure


def _width(clients: int) -> float:
    """Inches: cells have room for a number where there are few, and the whole stays within a screen."""
    return min(max(0.55 * clients + 3.0, 8.0), 16.0)


def _title(kind: str, total: str, notes: Sequence[str]) -> str:
    return "\n".join([f"{_plain(kind)}: {total}", *map(_plain, notes)])


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula: two dollar signs begin one, and a wrong one is an error."""
    return text.replace("$", r"\$")


def _draw_map(figure: Figure, axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    norm = LogNorm(1, max(2, int(counts.max())))
    # A logarithmic norm leaves the cells of 0 uncoloured.
    drawn = axes.imshow(counts, aspect="auto", cmap=_PALE_TO_DARK, norm=norm, interpolation="none")
    bar = figure.colorbar(drawn, ax=axes, label="examples", pad=0.01, ticks=LogLocator(), format="{x:,.0f}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("class")
    step = -(-len(class_names) // 50)
    shown = class_names[::step]
    lettering = Lettering.of(shown)
    names = [_plain(lettering.excerpt(name, _NAME_LENGTH)) for name in shown]
    axes.set_yticks(range(0, len(class_names), step), names, fontsize=8, family=lettering.families)
    axes.tick_params(axis="x", labelbottom=False)
    if len(class_names) <= _FEW_CLASSES and counts.shape[1] <= _FEW_CLIENTS:
        for (label, client), count in np.ndenumerate(counts):
            if count:
                colour = "white" if norm(count) > 0.45 else "black"
                axes.text(client, label, str(count), ha="center", va="center", fontsize=7, color=colour)


def _draw_sizes(axes: Axes, sizes: np.ndarray) -> None:
    axes.bar(range(len(sizes)), sizes, width=0.9 if len(sizes) <= 100 else 1.0, color="#4c566a")
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xlabel("client")
    axes.set_ylabel("examples")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=25, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
