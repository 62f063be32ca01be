"""A folder for all that a cluster started here writes, and that nothing stays of it however this process ends.

A process of its own waits for the end of this one, sweeps, and ends too. It sees the end of a pipe, which the kernel
closes also where this process is killed; and it is out of reach of a Ctrl-C at the terminal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LONGEST = 24
"""Characters of the folder that holds ours: Ray's sockets lie 81 below it, and a socket's path has at most 107."""

_LOOKS = 200
"""Looks for processes, 0.05 s apart. One that hangs in the kernel is left to it."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that is removed after the block, together with every process that uses it."""
    folder = Path(tempfile.mkdtemp(prefix="tessera-", dir=_parent()))
    sweeper = subprocess.Popen(
        [sys.executable, __file__, folder, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # a reader of our output shall not have to wait for the sweeper
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        sweeper.communicate()  # closes the pipe, and waits


def _parent() -> str:
    asked = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return asked if len(asked) <= LONGEST else "/tmp"


def sweep(folder: Path, keep: int) -> None:
    """Kill the processes that are at home in a folder, but for the process `keep`; then remove the folder."""
    for _ in range(_LOOKS):
        found = [process for process in psutil.process_iter() if process.pid != keep and _at_home(process, folder)]
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():  # a process that was ending may have written once more
                return
        time.sleep(0.05)


def _at_home(process: psutil.Process, folder: Path) -> bool:
    """Whether a process was started with the folder as TMPDIR, or writes to files in it.

    Parents do not tell, since they may have died; and some of Ray's processes write their titles over what they were
    started with.
    """
    try:
        if process.environ().get("TMPDIR") == str(folder):
            return True
        opened = process.open_files()
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return False
    return any(file.mode != "r" and Path(file.path).is_relative_to(folder) for file in opened)


if __name__ == "__main__":
    sys.stdin.read()
    sweep(Path(sys.argv[1]), keep=int(sys.argv[2]))
