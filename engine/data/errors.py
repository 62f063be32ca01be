"""What a user's mistake looks like: the key, the value found, what is wrong with it, and the way out."""

from __future__ import annotations

from engine.errors import UserError, shown


class InputError(UserError):
    """A setting that does not fit the files or numbers it is about.

    Attributes:
        key: place in the configuration, such as `data.source`.
        value: what stands there.
        problem: what is wrong, with file, row or client and the numbers found.
        remedy: what would be right.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(key, value, problem, remedy)
        self.key = key
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)}: {self.problem}; {self.remedy}"


class DataError(InputError):
    """A data set that cannot be read as one: missing, unreadable, of mixed sizes or with labels out of range."""
