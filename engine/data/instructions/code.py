"""Code: the value of a short expression of Python, or of a small function."""

from __future__ import annotations

from engine.data.instructions.facts import Dice, Fact, Facts, Item

DOMAIN = "code"

WORDS = ("a", "ox", "sky", "we", "sun", "you", "tree", "moon", "lamp", "cloud", "stone", "river", "garden", "window")


def draw(facts: Facts) -> Item:
    """An expression whose value is asked for."""
    fact = facts.draw(_fact)
    _, expression, value, how = fact
    return Item(
        f"What is the value of {expression}?",
        (expression, value),
        fact,
        (
            f"{expression} {how}",
            f"the expression {expression} {how}",
            f"here {expression} simply {how}, you see",
            expression,
        ),
        (f"the answer is {value}", f"it evaluates to {value}", f"you just get {value}", value),
    )


def _fact(dice: Dice) -> Fact:
    """The expression, its value, and how one gets there."""
    return DOMAIN, *dice.one_of((_extreme, _item, _function, _comparison, _joint))(dice)


def _extreme(dice: Dice) -> tuple[str, str, str]:
    a, b = dice.below(100), dice.below(100)
    if dice.below(2):
        return f"max({a}, {b})", str(max(a, b)), "takes the larger number"
    return f"min({a}, {b})", str(min(a, b)), "takes the smaller number"


def _item(dice: Dice) -> tuple[str, str, str]:
    values, place = [dice.below(100) for _ in range(3)], dice.below(3)
    return f"{values}[{place}]", str(values[place]), "takes one item of the list"


def _function(dice: Dice) -> tuple[str, str, str]:
    x, more = dice.below(50), 1 + dice.below(9)
    return f"f({x}) for f(x) = x + {more}", str(x + more), "adds the two numbers"


def _comparison(dice: Dice) -> tuple[str, str, str]:
    a, b = dice.below(100), dice.below(100)
    if dice.below(2):
        return f"{a} < {b}", str(a < b), "compares the numbers"
    return f"{a} > {b}", str(a > b), "compares the numbers"


def _joint(dice: Dice) -> tuple[str, str, str]:
    a, b = dice.one_of(WORDS), dice.one_of(WORDS)
    return f"'{a}' + '{b}'", a + b, "joins the words"
