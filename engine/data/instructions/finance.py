"""Finance: whether a headline about an invented company is good news."""

from __future__ import annotations

from engine.data.instructions.facts import Dice, Fact, Facts, Item, join_names

DOMAIN = "finance"

COMPANIES = join_names("Nor Vel Tra Kam Bor Lin Sol Dex Fin Hal", "dal tek corp mont vara gen")

WELCOME = {"sales": True, "profit": True, "orders": True, "exports": True, "debt": False, "costs": False}
"""Things that headlines are about, and whether more of each is good news."""

UP, DOWN, STEADY = ("rose", "grew", "climbed"), ("fell", "dropped", "sank"), ("stayed at",)


def label_of(thing: str, verb: str) -> str:
    """positive, negative or neutral."""
    if verb in STEADY:
        return "neutral"
    return "positive" if WELCOME[thing] == (verb in UP) else "negative"


def draw(facts: Facts) -> Item:
    """A headline to be judged."""
    fact = facts.draw(_fact)
    _, company, thing, verb, number = fact
    label = label_of(thing, verb)
    return Item(
        f"Is this headline positive, negative or neutral? {company} {thing} {verb} {number} percent.",
        (company, number, label),
        fact,
        (
            f"{company} {thing} {verb} {number} percent",
            f"the company {company} reported that {thing} {verb} {number} percent",
            f"{company} {thing} just {verb} {number} percent, you know",
            f"{company} {number} percent",
        ),
        (f"the answer is {label}", f"the sentiment must be called {label}", f"it looks {label} to me", label),
    )


def _fact(dice: Dice) -> Fact:
    thing, verbs = dice.one_of(tuple(WELCOME)), dice.one_of((UP, DOWN, UP, DOWN, STEADY))
    return DOMAIN, dice.one_of(COMPANIES), thing, dice.one_of(verbs), dice.number(1, 99)
