"""Columns of a data set as they were read, before a task makes of them what its networks take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Content: TypeAlias = Literal["image", "signal", "text", "number", "category", "class"]


@dataclass(frozen=True, eq=False)
class Column:
    """One column, a value a row.

    Attributes:
        content: what the values are.

            - `image`: uint8 (N, C, H, W);
            - `signal`: float32 (N, channels, T);
            - `text`: object (N,), str;
            - `number`: float64 (N,), NaN where a value is missing;
            - `category`: object (N,), str, or None where a value is missing;
            - `class`: int64 (N,), positions in `names`, not yet checked against them.
        values: the array.
        names: of a `class` column, one for each class.
    """

    content: Content
    values: np.ndarray
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Column:
        """The rows of these numbers."""
        return Column(self.content, self.values[rows], self.names)


Columns: TypeAlias = Mapping[str, Column]
"""One half of a data set: columns of equal length by name."""

Roles: TypeAlias = Mapping[str, tuple[str, ...]]
"""Which columns play which part for a task, as {"image": ("img",), "label": ("fine_label",)}."""


class ColumnError(ValueError):
    """Columns that do not fit a task.

    Attributes:
        role: what the column was needed for; "" where it is about all of them.
        problem: what is wrong, naming columns, rows and values.
        remedy: what would be right.
    """

    def __init__(self, role: str, problem: str, remedy: str) -> None:
        super().__init__(role, problem, remedy)
        self.role, self.problem, self.remedy = role, problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def only_column(columns: Columns, roles: Roles, role: str, contents: tuple[Content, ...]) -> str:
    """Name of the one column for a role: the one that `roles` names, or the only one with such contents.

    Raises:
        ColumnError: a named column is missing or holds something else, or there is none or more than one to choose.
    """
    fitting = [name for name, column in columns.items() if column.content in contents]
    wanted = " or ".join(contents)
    if role in roles:
        (name,) = roles[role] if len(roles[role]) == 1 else ("",)
        if not name:
            raise ColumnError(role, f"names {len(roles[role])} columns", f"name one {wanted} column")
        if name not in columns:
            raise ColumnError(role, f"there is no column {name!r}", f"there are {', '.join(columns)}")
        if name not in fitting:
            raise ColumnError(role, f"column {name!r} holds {columns[name].content} values", f"name a {wanted} column")
        return name
    taken = {name for names in roles.values() for name in names}
    free = [name for name in fitting if name not in taken]
    if len(free) != 1:
        found = f"columns {', '.join(free)} could be it" if free else f"no column holds {wanted} values"
        raise ColumnError(role, found, f"say which by data.columns: {{{role}: NAME}}; there are {', '.join(columns)}")
    return free[0]
