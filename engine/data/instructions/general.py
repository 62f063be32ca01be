"""General: a value read from a table that stands in the task, or a quantity in another unit."""

from __future__ import annotations

from engine.data.instructions.facts import Dice, Fact, Facts, Item, join_names, table_rows

DOMAIN = "general"

PEOPLE = join_names("An Be Da El Fa Jo Ka Lu Mi Ro Sa To Vi Wa", "na ris lo mir tha den ko vin sel ra")

QUANTITIES = ("age", "height", "weight", "score", "salary")

UNITS = {("cm", "mm"): 10, ("m", "cm"): 100, ("km", "m"): 1000, ("kg", "g"): 1000, ("euro", "cent"): 100}
"""Pairs of units, and the number of the second that makes one of the first."""

ROWS = 3


def draw(facts: Facts) -> Item:
    """Three tasks in four read from a table."""
    return _look_up(facts) if facts.dice.below(4) else _convert(facts)


def _look_up(facts: Facts) -> Item:
    quantity = facts.dice.one_of(QUANTITIES)
    rows = table_rows(facts, lambda dice: (DOMAIN, dice.one_of(PEOPLE), quantity, dice.number(1, 99)), ROWS)
    asked = rows[facts.dice.below(ROWS)]
    _, person, _, number = asked
    return Item(
        f"Table of {quantity}: {'; '.join(f'{name} {value}' for _, name, _, value in rows)}. "
        f"What is the {quantity} of {person}?",
        (person, quantity, number),
        asked,
        (
            f"the table gives the {quantity} of {person}",
            f"the entry of {person} in the table states the {quantity}",
            f"{person} has that {quantity} in there, basically",
            f"{person} {quantity}",
        ),
        (f"the answer is {number}", f"the value in question is {number}", f"it says just {number}", number),
    )


def _convert(facts: Facts) -> Item:
    fact = facts.draw(_quantity)
    _, number, large, small = fact
    factor = UNITS[large, small]
    value = str(int(number) * factor)
    return Item(
        f"Convert {number} {large} to {small}.",
        (number, str(factor), value),
        fact,
        (
            f"each {large} has {factor} {small} and there are {number}",
            f"the quantity of {number} {large} is multiplied by {factor}",
            f"well, {number} times {factor} {small}, you know",
            f"{number} times {factor}",
        ),
        (
            f"the answer is {value}",
            f"the converted quantity is {value} {small}",
            f"you get about {value} {small}",
            value,
        ),
    )


def _quantity(dice: Dice) -> Fact:
    return DOMAIN, dice.number(1, 999), *dice.one_of(tuple(UNITS))
