"""The source `generated:instructions`: tasks of five domains, answered by writers with styles of their own.

Two things differ between writers, each by a share of its own. Of a writer's tasks, the share `content_shift` is of the
writer's one domain, and the others are of all domains in equal numbers. Of its answers, the share `style_shift` is in
the writer's own style, and the others are in the canonical one. Which facts belong to the training half and which to
the test half never changes, and within a half no fact is asked for twice, nor shown in the table of another task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from algorithms.core.columns import Column
from algorithms.core.keys import SEPARATOR
from algorithms.core.seeds import Seed
from engine.data.config import DataConfig
from engine.data.half import TEST_SHARE, Half, HalfName
from engine.data.instructions import arithmetic, code, finance, general, medicine
from engine.data.instructions.facts import Dice, Fact, Facts, Item, NoFactLeft
from engine.data.instructions.settings import Settings
from engine.data.instructions.styles import CANONICAL, FOREIGN, Style
from engine.errors import DataError

DOMAINS: Mapping[str, Callable[[Facts], Item]] = {
    module.DOMAIN: module.draw for module in (finance, medicine, arithmetic, code, general)
}


@dataclass(frozen=True)
class Row:
    """A task with its answer, as a writer gives it."""

    item: Item
    style: Style
    writer: int

    @property
    def answer(self) -> str:
        return self.style.render(self.item)

    @property
    def canonical(self) -> str:
        """The same facts in the canonical style: the answer of a rewriter without errors."""
        return CANONICAL.render(self.item)

    @property
    def key(self) -> str:
        return SEPARATOR.join(self.item.key)

    @property
    def fact(self) -> str:
        return "/".join(self.item.fact)


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """Columns `instruction`, `answer`, `canonical`, `key`, `domain`, `reference_style`, `fact` and `writer`.

    Raises:
        DataError: a domain has fewer facts than the settings ask for.
    """
    settings = Settings(**{field.name: getattr(config, field.name) for field in fields(Settings)})
    try:
        rows = draw_rows(settings, half)[:limit]
    except NoFactLeft as error:
        problem = f"{settings.writers} writers ask for more facts of {error} than the {half} half has"
        raise DataError("data.items", settings.items, problem, "use fewer items or writers") from error
    words = {
        "instruction": [row.item.instruction for row in rows],
        "answer": [row.answer for row in rows],
        "canonical": [row.canonical for row in rows],
        "key": [row.key for row in rows],
        "domain": [row.item.domain for row in rows],
        "reference_style": [row.style.name for row in rows],
        "fact": [row.fact for row in rows],
    }
    columns = {name: Column("text", np.array(values, object)) for name, values in words.items()}
    writers = Column("number", np.array([row.writer for row in rows], np.float64))
    return Half({**columns, "writer": writers}, lambda row: f"instruction {row}", config.source)


def draw_rows(settings: Settings, half: HalfName) -> list[Row]:
    """The rows of one half, those of all writers in one shuffled order.

    Raises:
        NoFactLeft: naming the domain that has no more facts.
    """
    seed = Seed(settings.seed).at(phase="data")
    count = settings.items if half == "train" else max(1, round(settings.items * TEST_SHARE / (1 - TEST_SHARE)))
    styles = writers_styles(settings)
    known: set[Fact] = set()
    rows = []
    for writer in range(settings.writers):
        random = seed.at(client=writer).numpy(half)
        facts = Facts(half, Dice(random), known)
        items = [DOMAINS[domain](facts) for domain in _domains_of(writer, count, settings.content_shift)]
        own = np.arange(count) < round(settings.style_shift * count)
        random.shuffle(own)
        rows += [
            Row(item, styles[writer] if is_own else CANONICAL, writer) for item, is_own in zip(items, own, strict=True)
        ]
    return [rows[at] for at in seed.numpy(f"order of {half}").permutation(len(rows))]


def writers_styles(settings: Settings) -> list[Style]:
    """A style for each writer, no two the same."""
    order = Seed(settings.seed).at(phase="data").numpy("styles").permutation(len(FOREIGN))
    return [FOREIGN[at] for at in order[: settings.writers]]


def _domains_of(writer: int, count: int, shift: float) -> list[str]:
    """The domain of each of a writer's tasks: its own for a share of them, all in turn for the others."""
    names = list(DOMAINS)
    own = round(shift * count)
    return [names[writer % len(names)]] * own + [names[(writer + at) % len(names)] for at in range(count - own)]
