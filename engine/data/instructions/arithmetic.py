"""Arithmetic: sums and differences of small numbers, in one step or two."""

from __future__ import annotations

from engine.data.instructions.facts import Dice, Fact, Facts, Item

DOMAIN = "arithmetic"

MOST = 99
"""No number that occurs is larger."""

_NAMES = {"+": ("plus", "the sum of {a} and {b}"), "-": ("minus", "the difference of {a} and {b}")}


def draw(facts: Facts) -> Item:
    """A calculation of one or two steps."""
    fact = facts.draw(_two_steps if facts.dice.below(2) else _one_step)
    start, *rest = fact[1:]
    steps = []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        start, before = str(_value(start, sign, number)), start
        steps.append((before, sign, number, start))
    numbers = [value for value in fact[1:] if value.isdigit()]
    formal = (f"{_NAMES[sign][1].format(a=a, b=b)} equals {value}" for a, sign, b, value in steps)
    return Item(
        f"Compute {' '.join(fact[1:])}.",
        tuple(dict.fromkeys([*numbers, *(value for *_, value in steps)])),
        fact,
        (
            " and ".join(f"{a} {sign} {b} = {value}" for a, sign, b, value in steps),
            " and ".join(formal),
            " and then ".join(f"{a} {_NAMES[sign][0]} {b} makes {value}" for a, sign, b, value in steps),
            ", ".join(f"{a}{sign}{b}={value}" for a, sign, b, value in steps),
        ),
        (f"the answer is {start}", f"the final number is {start}", f"it comes out as {start}, really", start),
    )


def _value(a: str, sign: str, b: str) -> int:
    return int(a) + int(b) if sign == "+" else int(a) - int(b)


def _one_step(dice: Dice) -> Fact:
    total = dice.below(MOST + 1)
    part = dice.below(total + 1)
    if dice.below(2):
        return DOMAIN, str(part), "+", str(total - part)
    return DOMAIN, str(total), "-", str(part)


def _two_steps(dice: Dice) -> Fact:
    """A number of two digits and two of one: it stays between 0 and `MOST`."""
    first, second = (dice.one_of(("+", "-")) for _ in range(2))
    return DOMAIN, dice.number(20, 80), first, dice.number(1, 9), second, dice.number(1, 9)
