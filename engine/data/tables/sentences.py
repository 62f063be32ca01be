"""Short English sentences on four topics in three styles, made from a fixed seed: text without any file."""

from __future__ import annotations

import numpy as np

from algorithms.core.columns import Column
from algorithms.core.seeds import Seed
from engine.data.config import DataConfig
from engine.data.half import Half, HalfName, rows_of_half

ROWS = 600

TOPICS = {
    "weather": (
        ("rain", "snow", "wind", "fog", "sunshine", "a storm", "frost", "thunder"),
        ("over the hills", "along the coast", "in the valley", "by the evening", "from the north", "until Sunday"),
        ("is expected", "will clear", "keeps falling", "moves in", "has passed", "grows colder"),
    ),
    "sport": (
        ("the striker", "our goalkeeper", "the home team", "the runner", "the coach", "the champion", "the referee"),
        ("in the second half", "at the stadium", "before the final", "by two goals", "in extra time", "this season"),
        ("won again", "missed the ball", "set a record", "lost the match", "trained hard", "was cheered"),
    ),
    "cooking": (
        ("the soup", "fresh bread", "the sauce", "a pinch of salt", "the roast", "an apple cake", "the garlic"),
        ("in the oven", "for ten minutes", "with butter", "in a large pan", "before serving", "on low heat"),
        ("should simmer", "tastes better", "is stirred", "turns golden", "needs pepper", "can cool"),
    ),
    "travel": (
        ("the night train", "our flight", "the ferry", "the hotel", "a guide", "the border", "the old harbour"),
        (
            "to the islands",
            "from platform nine",
            "across the mountains",
            "near the museum",
            "without luggage",
            "in May",
        ),
        ("leaves early", "was delayed", "is fully booked", "arrives late", "takes visitors", "costs little"),
    ),
}
"""By topic: what a sentence is about, where or when, and what is said of it."""

STYLES = {
    "report": (
        "{thing} {verb} {place}.",
        "As announced, {thing} {verb} {place}.",
        "Officials say {thing} {verb} {place}.",
    ),
    "chat": (
        "hey, {thing} {verb} {place}, you know?",
        "lol {thing} {verb} {place}",
        "guess what: {thing} {verb} {place}!",
    ),
    "diary": (
        "Today I saw that {thing} {verb} {place}.",
        "I wrote it down: {place}, {thing} {verb}.",
        "{place}, I think, {thing} {verb}.",
    ),
}

STRAY = 0.3
"""Chance of a part of a sentence to come from any topic, so that no word decides alone."""


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """Columns `text`, `domain` (the style) and `label` (the topic); split as `rows_of_half` says."""
    texts, domains, labels = _sentences()
    rows = rows_of_half(ROWS, half)[:limit]
    columns = {
        "text": Column("text", texts[rows]),
        "domain": Column("text", domains[rows]),
        "label": Column("number", labels[rows]),
    }
    return Half(columns, lambda row: f"sentence {row}", config.source, names={"label": tuple(TOPICS)})


def texts() -> list[str]:
    """Every sentence, in the order in which they are made."""
    return _sentences()[0].tolist()


def _sentences() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts and styles, object (ROWS,), and topics, float64 (ROWS,)."""
    draw = Seed(0).at(phase="data").numpy("sentences")
    topics, styles = list(TOPICS), list(STYLES)
    texts, domains, labels = [], [], []
    for _ in range(ROWS):
        label, domain = int(draw.integers(len(topics))), styles[int(draw.integers(len(styles)))]
        parts = [_part(kind, topics[label], draw) for kind in range(3)]
        template = STYLES[domain][int(draw.integers(len(STYLES[domain])))]
        texts.append(template.format(thing=parts[0], place=parts[1], verb=parts[2]))
        domains.append(domain)
        labels.append(label)
    return np.array(texts, object), np.array(domains, object), np.array(labels, np.float64)


def _part(kind: int, topic: str, draw: np.random.Generator) -> str:
    """One phrase of a kind, in most cases of the topic."""
    source = list(TOPICS)[int(draw.integers(len(TOPICS)))] if draw.random() < STRAY else topic
    phrases = TOPICS[source][kind]
    return phrases[int(draw.integers(len(phrases)))]
