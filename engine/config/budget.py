"""The budget of a run: what a method's own budget of that name sets, where nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.steps.orders import find_method
from engine.config.schema import RunConfig
from engine.errors import one_line


def with_budget(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a configuration, with the values of its budget in the method's section beneath those that stand
    there. A tree that is wrong is given back as it is, for those who say what is wrong with it."""
    method, budget = tree.get("method"), tree.get("budget")
    if not isinstance(method, Mapping) or not isinstance(budget, str):
        return dict(tree)
    try:
        budgets: Any = find_method(method["name"]).budgets
    except Exception:  # whatever goes wrong in a user's module; reading the section says it
        return dict(tree)
    return {**tree, "method": {**budgets.get(budget, {}), **method}}


def values_of_budget(config: RunConfig) -> dict[str, Any]:
    """The method's settings that have the values which the budget sets; those that somebody set otherwise are none."""
    budgeted = config.method.type.budgets.get(config.budget, {})
    return {key: value for key, value in budgeted.items() if getattr(config.method.settings, key) == value}


def budget_fact(config: RunConfig) -> dict[str, str]:
    """The budget in words, by name; empty where it sets nothing."""
    values = values_of_budget(config)
    text = ", ".join(f"{key} = {one_line(value)}" for key, value in values.items())
    return {"budget": f"{config.budget}: {text}"} if values else {}
