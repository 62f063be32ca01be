"""Write what the documentation takes from the program: both references, and the output of every command shown.

    python -m docs.make

rewrites README.md and the pages in docs/ where they differ from what the program prints now; tests/test_docs.py fails
where they do. On a page, a comment marks the block that follows it:

    <!-- output -->                        a console block; its first line is `$ COMMAND`, and the rest is its output
    <!-- output, lines 1-4 20- -->         the same, of which these lines are kept; "..." stands for the others
    <!-- output, figures vary -->          the same, of a command that trains: figures depend on the machine
    <!-- table: COMMAND -->                a table that a command prints
    <!-- table: FILE -->                   the first table of a file, of benchmarks/results/

Commands of a page run one after another in one empty folder, beside the files that the page shows: blocks whose first
line is a comment with a file's name, as `# mine.yaml`, or that follow a line `<!-- file: mine.csv -->`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from docs import references

ROOT = Path(__file__).parent.parent
MAKE = "python -m docs.make"
HOME = "/home/you/tessera"
"""Stands on the pages for the folder in which their commands run."""

_MARK = re.compile(
    r"<!-- (?P<kind>output|table)(?P<options>[^\n]*?) -->\n"
    r"(?P<shown>```console\n\$ .*?\n```|\|.*?(?=\n\n|\Z))",
    flags=re.DOTALL,
)
_FILE = re.compile(r"^```\w+\n(?P<text># (?P<name>[\w./-]+\.\w+)\n.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_PLAIN_FILE = re.compile(r"^<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_VARYING = (
    (re.compile(r"free on this machine: .*"), "free on this machine: #"),
    (re.compile(r"; [\d.]+ \wB are free"), "; # are free"),
    (re.compile(r"^ *\d+:\d\d ", flags=re.MULTILINE), "0:00 "),
)
_FIGURES = (
    (re.compile(r"\b[0-9a-f]{16,64}\b"), "#"),
    (re.compile(r"[+-]?\d[\d.,]*"), "#"),
    (re.compile(r"[ ─]+"), " "),
    (re.compile(r"\*\*"), ""),
)


@dataclass(frozen=True)
class ShownBlock:
    """A block of a page that a command has printed.

    Attributes:
        command: as it is typed.
        options: what its mark says besides.
        text: the block as it stands on the page, its fence included.
        start: its place on the page.
    """

    command: str
    options: str
    text: str
    start: int = 0

    def block(self, output: str) -> str:
        """The block that shows this output."""
        if self.text.startswith("|"):
            return _first_table(output)
        lines = [line.rstrip() for line in output.rstrip().splitlines()]
        wanted = re.search(r"lines ((?:\d*-?\d* ?)+)", self.options)
        return "\n".join(
            ["```console", f"$ {self.command}", *(_choose_lines(lines, wanted[1]) if wanted else lines), "```"]
        )

    def agrees_with(self, block: str) -> bool:
        """Whether a block shows the same, but for what differs by machine and time."""
        masks = (*_VARYING, *(_FIGURES if "figures vary" in self.options else ()))
        return _mask(self.text, masks) == _mask(block, masks)


def _mask(text: str, masks: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in masks:
        text = pattern.sub(replacement, text)
    return text


def _choose_lines(lines: list[str], choice: str) -> Iterator[str]:
    """The lines of ranges such as `1-4 9 20-`, counted from 1, and "..." for each gap between them."""
    last = 0
    for span in choice.split():
        begin, dash, end = span.partition("-")
        first = int(begin)
        if first > last + 1:
            yield "    ..."
        last = (int(end) if end else len(lines)) if dash else first
        yield from lines[first - 1 : last]
    if last < len(lines):
        yield "    ..."


def _first_table(output: str) -> str:
    found = re.search(r"^\|.*\n(?:\|.*\n?)+", output, flags=re.MULTILINE)
    if not found:
        raise ValueError(f"no table in what was printed:\n{output}")
    return found[0].rstrip()


def pages() -> list[Path]:
    """The pages that people write: README.md and docs/, without the references."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: str) -> Iterator[ShownBlock]:
    """Every marked block of a page, in order."""
    for found in _MARK.finditer(page):
        options, text = found["options"], found["shown"]
        if found["kind"] == "table":
            yield ShownBlock(options.removeprefix(":").strip(), "", text, found.start("shown"))
        else:
            yield ShownBlock(text.splitlines()[1].removeprefix("$ "), options, text, found.start("shown"))


def current_blocks(page: str) -> Iterator[tuple[ShownBlock, str]]:
    """Every marked block of a page, and the block that its command gives now."""
    with _workplace(page) as folder:
        for shown in blocks_of(page):
            yield shown, shown.block(_run(shown.command).replace(str(folder), HOME))


def rewritten(page: str) -> str:
    """The page with the blocks replaced that differ from what their commands print now."""
    kept = 0
    parts = []
    for shown, block in current_blocks(page):
        if not shown.agrees_with(block):
            parts += [page[kept : shown.start], block]
            kept = shown.start + len(shown.text)
    return "".join([*parts, page[kept:]])


@contextlib.contextmanager
def _workplace(page: str) -> Iterator[Path]:
    """An empty current folder with the files that a page shows, whose modules can be imported.

    The machine has two CPUs, and this process no cluster of its own.
    """
    loaded, path = set(sys.modules), list(sys.path)
    environment = {"COLUMNS": "120", "TESSERA_DATA": "", "RAY_ADDRESS": ""}
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.dict(os.environ, environment),
        mock.patch("psutil.cpu_count", return_value=2),
        mock.patch("engine.run.hosting.usable_cpus", return_value=2),
        mock.patch("ray.is_initialized", return_value=False),
    ):
        folder = Path(name).resolve()
        write_files(page, folder)
        sys.path.insert(0, str(folder))
        try:
            with contextlib.chdir(folder):
                yield folder
        finally:
            sys.path[:] = path
            for module in set(sys.modules) - loaded:
                if str(getattr(sys.modules[module], "__file__", None)).startswith(str(folder)):
                    del sys.modules[module]


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows into a folder."""
    for found in (*_FILE.finditer(page), *_PLAIN_FILE.finditer(page)):
        place = folder / found["name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(found["text"])


def _run(command: str) -> str:
    """The output of a command, on both streams, or the contents of a file; modules run in the root of the
    repository."""
    program, *arguments = shlex.split(command)
    if not arguments:
        return (ROOT / program).read_text()
    if program == "tessera":
        from engine.commands.cli import cli

        return CliRunner().invoke(cli, arguments).output
    if (program, arguments[0]) != ("python", "-m"):
        raise ValueError(f"a shown command begins with tessera or python -m, not with {command!r}")
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.chdir(ROOT),
        contextlib.suppress(SystemExit),
        mock.patch.object(sys, "argv", arguments[1:]),
    ):
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    return output.getvalue()


def reference_files() -> Mapping[Path, str]:
    """The references by their files."""
    folder = ROOT / "docs" / "reference"
    return {
        folder / "configuration.md": references.configuration(),
        folder / "methods.md": references.methods(),
    }


def main() -> None:
    """See the module's text."""
    written = dict(reference_files())
    for page in pages():
        written[page] = rewritten(page.read_text())
    for path, text in written.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
