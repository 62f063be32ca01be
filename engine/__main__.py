"""`python -m engine`, installed as `tessera`."""

from __future__ import annotations

import os
import sys

from engine.commands.cli import cli


def main() -> None:
    """The command line; ends the process.

    Code of the user's own is found in the current folder, as hosts on Ray and submitted jobs find it: last, so that no
    file there takes the place of a module of ours or of Python's.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    cli(prog_name="tessera")


if __name__ == "__main__":
    main()
