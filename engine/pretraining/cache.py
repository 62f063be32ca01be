"""The cache of tiny language models: made once on a machine, for all runs that name one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from engine.pretraining.making import RECORD, PretrainingError, pretrain
from engine.pretraining.recipe import RECIPES, fingerprint

PLACE = "TESSERA_CACHE"
"""Variable of the environment that names the folder of what is made once; `~/.cache/tessera` where it is not set."""


def cache_folder() -> Path:
    """The folder of what is made once on this machine."""
    return Path(os.environ.get(PLACE) or Path.home() / ".cache" / "tessera").expanduser()


def base_folder(name: str) -> Path:
    """The place of the tiny model of a name, made or not; a changed recipe has another."""
    return cache_folder() / "models" / f"{name}-{fingerprint(name, RECIPES[name], 0)}"


def ensure_base(name: str, tell: Callable[[str], object]) -> Path:
    """The folder of the tiny model of a name, of seed 0; made now where it is not there yet.

    Of several processes that ask at once, one makes it, and the others wait.

    Args:
        tell: hears some lines where it has to be made: what is done and where, how far it is, and how good it is.

    Raises:
        PretrainingError: for an unknown name, or where the cache cannot be written.
        NetworkError: without the extra `llm`.
    """
    if name not in RECIPES:
        raise PretrainingError(f"no tiny language model is called {name!r}; known are {', '.join(RECIPES)}")
    folder = base_folder(name)
    if (folder / RECORD).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        with lock:
            if not (folder / RECORD).is_file():
                _make(name, folder, tell)
    except OSError as error:
        raise PretrainingError(f"{folder} cannot be made: {error}; name a folder for it by {PLACE}") from error
    return folder


def _make(name: str, folder: Path, tell: Callable[[str], object]) -> None:
    tell(f"{name} is not in the cache yet and is pre-trained now, once: {folder}")
    made = pretrain(name, folder, say=_Some(tell))
    for miss in made.acceptance.misses():
        tell(f"warning: {name} is a poor model: {miss}")


class _Some:
    """Passes on some lines of many: one whenever another tenth of the work is done."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell, self._tenth = tell, 0

    def __call__(self, line: str, share: float) -> None:
        if int(10 * share) > self._tenth:
            self._tenth = int(10 * share)
            self._tell(line)
