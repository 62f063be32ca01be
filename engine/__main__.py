"""`python -m engine`, installed as `tessera`."""

from __future__ import annotations

from engine.commands.cli import cli


def main() -> None:
    """The command line; ends the process."""
    cli(prog_name="tessera")


if __name__ == "__main__":
    main()
