"""Elements of a page. Whatever is put into one is text: nothing here can become markup that was not meant to."""

from __future__ import annotations

import base64
from typing import TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
Child: TypeAlias = "Element | str | None"


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element; `class_` is the attribute `class`, `stroke_width` is `stroke-width`; None is left out."""
    made = ElementTree.Element(
        tag,
        {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items() if value is not None},
    )
    for child in children:
        if isinstance(child, str):
            _append_text(made, child)
        elif child is not None:
            made.append(child)
    return made


def _append_text(parent: Element, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def page(title: str, style: str, *body: Child) -> bytes:
    """A whole page in UTF-8."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    root = element("html", head, element("body", element("main", *body)), lang="en")
    text = ElementTree.tostring(root, encoding="unicode", method="html")
    return f"<!doctype html>\n{text}\n".encode("utf-8", errors="replace")


def data_uri(png: bytes) -> str:
    """A PNG as the value of a `src`."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
