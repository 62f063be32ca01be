"""Configuration, data, the round loop, what is kept of a run, the command line; and all of it as a library:

    import engine as tessera

    run = tessera.run("fedavg-digits", rounds=4)

Importing it takes milliseconds: what a call needs is imported when it is called. See docs/python.md and `engine.api`.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from tessera_fl import put_packages_first

__all__ = [
    "ConfigError",
    "UserError",
    "compare",
    "open",
    "partition",
    "plan",
    "resume",
    "run",
    "sweep",
]


class _Room(ModuleType):
    """A room whose name is also a call of the library: `engine.run` holds modules, and `engine.run(...)` runs."""

    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        return self._call()(*arguments, **keys)

    def _call(self) -> Any:
        from engine import api

        return getattr(api, self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._call())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return inspect.getdoc(self._call())


class _Library(ModuleType):
    """The package, which finds its calls in `engine.api` when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from engine import api

        return getattr(api, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Python's import puts a room here under its name.
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Library
put_packages_first()
