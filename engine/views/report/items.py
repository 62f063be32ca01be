"""The section of a report on what clients' steps did item by item, such as answers that were rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from engine.store.folder import StoredRun
from engine.views.report.html import Element, element
from engine.views.report.words import as_words, count, labels

EXAMPLES = 6
"""Rows with texts that are shown, of as many clients as there are."""

PLACES = ("round", "client", "item")


def items(runs: Sequence[StoredRun]) -> Element | None:
    """A table by client for each step that told of its items, and some of them with their texts."""
    blocks = [
        element("div", element("h3", f"{name}: {step}" if len(runs) > 1 else step), *_of_step(table), class_="of-run")
        for name, run in zip(labels(runs), runs, strict=True)
        for step, table in run.items.items()
    ]
    return element("section", element("h2", "Item by item"), *blocks) if blocks else None


def _of_step(table: pa.Table) -> list[Element]:
    texts = [name for name in ("text", "new_text") if name in table.column_names]
    columns = [name for name in table.column_names if name not in (*PLACES, *texts)]
    found = [_by_client(table, columns)]
    if texts:
        found.append(_texts(table, texts))
    else:
        found.append(element("p", "Texts are kept where privacy.texts is true.", class_="note"))
    return found


def _by_client(table: pa.Table, columns: Sequence[str]) -> Element:
    """A table of each client: the number of its items, and the mean of each column or how often each word came."""
    rows = table.to_pylist()
    clients = sorted({row["client"] for row in rows})
    head = element("tr", *(element("th", as_words(name)) for name in ("client", "items", *columns)))
    body = []
    for client in clients:
        own = [row for row in rows if row["client"] == client]
        cells = [str(client), str(len(own)), *(_cell(table, name, own) for name in columns)]
        body.append(element("tr", *(element("td", cell) for cell in cells)))
    return element("table", element("thead", head), element("tbody", *body), class_="clients")


def _cell(table: pa.Table, name: str, rows: Sequence[dict[str, Any]]) -> str:
    kind, values = table.schema.field(name).type, [row[name] for row in rows]
    if types.is_boolean(kind):
        return f"{sum(values) / len(values):.0%}"
    if types.is_string(kind):
        words = Counter(value for value in values if value)
        return ", ".join(f"{word} {times}" for word, times in words.most_common()) or "-"
    return f"{sum(values) / len(values):.1f}"


def _texts(table: pa.Table, texts: Sequence[str]) -> Element:
    """The first items of the clients, one of each client before a second one of any."""
    rows = table.to_pylist()
    turns: Counter[int] = Counter()
    order = []
    for row in rows:
        order.append((turns[row["client"]], row["client"], row))
        turns[row["client"]] += 1
    chosen = [row for *_, row in sorted(order, key=lambda entry: entry[:2])[:EXAMPLES]]
    head = element("tr", element("th", "client"), *(element("th", as_words(name)) for name in texts))
    body = [
        element("tr", element("td", str(row["client"])), *(element("td", row[name] or "") for name in texts))
        for row in chosen
    ]
    shown = element("p", f"{count(len(chosen), 'item')} of {len(rows)}:", class_="note")
    return element("div", shown, element("table", element("thead", head), element("tbody", *body), class_="clients"))
