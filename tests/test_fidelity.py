"""The page on fidelity: a row for every method, and rates that a configuration takes."""

import re
from pathlib import Path

from actors.steps.orders import method_names
from engine.config import resolve
from engine.config.reading import parse
from tests.engine.test_config import changed

PAGE = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text(encoding="utf-8")


def rows(head: str) -> list[list[str]]:
    """The cells of the table under a head, row by row."""
    table = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_method_has_one_row():
    assert [cells[0].strip("`") for cells in rows("| method | compared with")] == sorted(method_names())


def test_a_row_says_with_what_a_method_was_compared_and_what_differs():
    for name, source, compared, differs in rows("| method | compared with"):
        assert source in ("code", "formulas"), name
        assert compared, name
        assert differs, name


def test_the_clients_rates_that_are_shown_fall_in_a_configuration():
    shown = re.findall(r"`(\{lr: .*?\}\})`", PAGE)
    assert len(shown) == len(rows("| method | in its code"))
    for text in shown:
        schedule = resolve(changed(clients=parse(text, "docs/fidelity.md"), rounds=3200)).clients.work(3200).schedule
        assert schedule.at(0) == 1
        assert schedule.at(3199) < 1
