"""Medicine: how an invented drug is taken, by a table that stands in the task."""

from __future__ import annotations

from engine.data.instructions.facts import Dice, Fact, Facts, Item, join_names, table_rows

DOMAIN = "medicine"

DRUGS = join_names("Per Zol Lum Cor Ami Bex Dor Flu Gal Hex Ibra Jux Mel Oxi", "ax mit idol pan rin stat vex zol ol en")

TIMES = ("once", "twice", "thrice")

ROWS = 3


def draw(facts: Facts) -> Item:
    """A table of drugs, of which one is asked for."""
    rows = table_rows(facts, _fact, ROWS)
    asked = rows[facts.dice.below(ROWS)]
    _, drug, dose, times = asked
    table = "; ".join(f"{name} {amount} mg {often} daily" for _, name, amount, often in rows)
    return Item(
        f"Drugs: {table}. How is {drug} taken?",
        (drug, dose, times),
        asked,
        (
            f"the table gives {drug} {dose} mg",
            f"{drug} is listed in the table with a dose of {dose} mg",
            f"{drug} is basically {dose} mg",
            f"{drug} {dose} mg",
        ),
        (
            f"the answer is {times} daily",
            f"it should be administered {times} daily",
            f"just take it {times} daily",
            f"{times} daily",
        ),
    )


def _fact(dice: Dice) -> Fact:
    return DOMAIN, dice.one_of(DRUGS), str(5 * (1 + dice.below(100))), dice.one_of(TIMES)
