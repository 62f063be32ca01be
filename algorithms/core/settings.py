"""A method's settings: frozen dataclasses whose fields carry a sentence and a range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

BudgetName: TypeAlias = Literal["paper", "laptop"]
"""The amount of work that a method may do on the server: what its paper takes, or what two cores do in minutes."""

Budgets: TypeAlias = Mapping[BudgetName, Mapping[str, Any]]
"""The values that a budget gives to a method's settings, by the settings' names; those it leaves out have their
defaults."""


def setting(
    default: Any,
    sentence: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    network: bool = False,
) -> Any:
    """A field of a method's Config: its default, what it means, and the range it must lie in.

    A choice among words is written as a `Literal[...]` annotation of the field, and is checked from there. `network`:
    the value is a network's name.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {
        "sentence": sentence,
        "bounds": {k: v for k, v in bounds.items() if v is not None},
        "network": network,
    }
    return dataclasses.field(default=default, metadata=metadata)


_HOLDS = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "larger than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
}


def out_of_range(field: dataclasses.Field[Any], value: Any) -> str | None:
    """The range that a field's value violates, as `must be at least 0`, or None; of a tuple, with any of its values.

    NaN is out of every range.
    """
    bounds: Mapping[str, float] = field.metadata.get("bounds", {})
    if not bounds or value is None:
        return None
    values = value if isinstance(value, tuple) else (value,)
    if all(_HOLDS[name][0](each, bound) for each in values for name, bound in bounds.items()):
        return None
    return "must be " + " and ".join(f"{_HOLDS[name][1]} {bound:g}" for name, bound in bounds.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every method's Config: refuses a value out of its field's range, naming the field."""

    def __post_init__(self) -> None:
        wrong = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            reason = out_of_range(field, value)
            if reason:
                wrong.append(f"{field.name} = {value!r} {reason}")
        if wrong:
            raise ValueError("; ".join(wrong))
