"""Ray's own output goes to a log file, not to the terminal."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def redirect_all_output(log: Path) -> Iterator[None]:
    """Redirect all terminal output of a block to the log, that of Ray's compiled code and child processes included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        with log.open("ab") as file:
            for fd, _ in kept:
                os.dup2(file.fileno(), fd)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)


@contextmanager
def redirect_ray_output(log: Path) -> Iterator[None]:
    """Redirect what Ray logs in this process, and prints from threads of its own, to the log for a block."""
    logger = logging.getLogger("ray")
    handler = logging.FileHandler(log, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [handler], False
    terminal = sys.stdout
    with log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as file:
        routed = sys.stdout = _ByThread(terminal, file)
        try:
            yield
        finally:
            if sys.stdout is routed:
                sys.stdout = terminal
            logger.handlers, logger.propagate = before
            handler.close()


@contextmanager
def keep_ray_handlers() -> Iterator[None]:
    """A block after which Ray logs where it did before: `ray.init` takes its handlers away where it is not to configure
    any, and what Ray says then goes to the terminal."""
    logger = logging.getLogger("ray")
    before = logger.handlers[:]
    try:
        yield
    finally:
        logger.handlers = before


class _ByThread:
    """Standard output for all threads but Ray's. They print what befalls workers, whatever `ray.init` was told."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        of_ray = threading.current_thread().name.startswith("ray_")
        return (self._file if of_ray and not self._file.closed else self._terminal).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def collect(session: Path, log: Path) -> None:
    """Append what the workers of a session have printed to the log."""
    with log.open("ab") as file:
        for path in sorted((session / "logs").glob("worker-*.*")):
            if path.suffix in (".out", ".err") and path.stat().st_size:
                file.write(f"\n--- {path.name}\n".encode())
                with path.open("rb") as printed:
                    shutil.copyfileobj(printed, file)
