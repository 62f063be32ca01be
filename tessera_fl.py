"""Tessera's way in, by a name that no folder of anybody's project has: it says which module stands for which name.

`algorithms`, `actors`, `clusters` and `engine` are common names. Python looks for them in the current folder, and where
PYTHONPATH points, before it looks where Tessera is installed; and Ray's workers look in the driver's folder before all.
Here our packages come first, and code of the user's own in the current folder last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("algorithms", "actors", "clusters", "engine")

HOME = str(Path(__file__).resolve().parent)
"""The folder that holds our packages: a clone, site-packages, or what travelled with a job."""


class _Order:
    """Finds our packages beside this file, and other modules anywhere but in the folder of the user's own code.

    What is only there is left to Python, which looks everywhere.
    """

    def __init__(self) -> None:
        self.own: str | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in PACKAGES or name == "tessera_fl":
            return PathFinder.find_spec(name, [HOME])
        if path is not None or self.own is None:
            return None
        spec = PathFinder.find_spec(name, [entry for entry in sys.path if os.path.abspath(entry) != self.own])
        return None if spec is None or spec.loader is None else spec  # a folder without code is no package yet


_ORDER = _Order()


def put_packages_first() -> None:
    """From now on, find our packages whatever else goes by their names.

    Raises:
        ImportError: another package goes by one of the names in this process already.
    """
    for name in PACKAGES:
        place = next(iter(getattr(sys.modules.get(name), "__path__", ())), None)
        if place is not None and Path(place).resolve().parent != Path(HOME):
            raise ImportError(
                f"{place} was imported as {name}, which is the name of a package of Tessera ({HOME}) too, and one "
                "process has room for one of them: import Tessera in a process of its own, or rename the folder"
            )
    if _ORDER not in sys.meta_path:
        sys.meta_path.insert(0, _ORDER)


def put_own_code_last(folder: str) -> None:
    """Find code of the user's own in a folder, after all else, so that no file there takes the place of another module.

    A folder that PYTHONPATH names stays where that has it.
    """
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder not in named:
        _ORDER.own = folder
    if folder not in sys.path:
        sys.path.append(folder)


def worker_setup(own: str) -> Callable[[], None]:
    """The first thing that a worker of Ray's does, so that it finds modules as this process does; it travels by value.

    Args:
        own: the folder of the user's own code.
    """
    home = HOME

    def prepare() -> None:
        import sys

        try:
            import tessera_fl
        except ImportError:
            sys.path.append(home)  # of a clone that is not installed
            try:
                import tessera_fl
            except ImportError:
                return  # the node has no such folder, and Ray may still find what it was sent
        tessera_fl.put_packages_first()
        tessera_fl.put_own_code_last(own)

    return prepare


def main() -> None:
    """The command line; ends the process."""
    try:
        put_packages_first()
        put_own_code_last(os.getcwd())
        from engine.commands.cli import OWN_PROCESS, cli
    except KeyboardInterrupt:  # before the command line can answer it
        print("stopped", file=sys.stderr)
        sys.exit(130)

    cli(prog_name="tessera", obj=OWN_PROCESS)


if __name__ == "__main__":
    from tessera_fl import main as start  # by its own name, so that there is one order of modules in the process

    start()
