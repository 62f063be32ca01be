"""Classes by name: a module of one of our packages, or one's own as pkg.module:Class."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import TypeVar

from algorithms.nets.split import reason

ClassT = TypeVar("ClassT")


def module_names(package: ModuleType) -> Sequence[str]:
    """Names of the files and folders of a package, sorted; those that begin with an underscore are not among them."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find_class(name: str, package: ModuleType, base: type[ClassT], word: str) -> type[ClassT]:
    """The only class of the module `package.NAME` that is made there and derived from a base, or `pkg.module:Class`.

    Args:
        word: for what is looked for, as `method`.

    Raises:
        LookupError: no such module or class; the message lists what there is.
    """
    if ":" in name:
        return _own_class(name, base)
    known = module_names(package)
    if name not in known:
        raise LookupError(f"no {word} named {name!r}; there are {', '.join(known)}, or one's own as pkg.module:Class")
    module = importlib.import_module(f"{package.__name__}.{name}")
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base)]
    own = [c for c in classes if f"{c.__module__}.".startswith(f"{module.__name__}.")]
    if len(own) != 1:
        raise LookupError(f"{module.__name__.replace('.', '/')} defines {len(own)} {word}s, it must be one")
    return own[0]


def _own_class(name: str, base: type[ClassT]) -> type[ClassT]:
    source, _, wanted = name.partition(":")
    try:
        module = importlib.import_module(source)
    # Whatever goes wrong in a user's module is the answer to why there is no class; the traceback travels as cause.
    except Exception as error:
        raise LookupError(f"{source or 'a module without a name'} cannot be imported: {reason(error)}") from error
    found = getattr(module, wanted, None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise LookupError(f"{wanted!r} in {source} is not a class derived from {base.__module__}.{base.__name__}")
    return found
