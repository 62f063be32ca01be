"""Names of any language on terminals of any encoding: whatever cannot be written is escaped, and nothing ends."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from engine.commands.cli import cli
from engine.partition import Partition
from engine.store.folder import read
from engine.views import terminal
from engine.views.screen import Screen

NAMES = ("K\u00e4fer", "\u8702", "\U0001f41d")
"""Classes: in cp1252, in no 8-bit encoding of the West, and outside of the basic plane."""

ENCODINGS = ("ascii", "cp1252", "utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images, and a configuration, under names of several languages."""
    home = tmp_path / "\u0434\u0430\u043d\u043d\u044b\u0435"
    for half in ("train", "test"):
        for code, name in enumerate(NAMES):
            place = home / "\u56fe\u50cf" / half / name
            place.mkdir(parents=True)
            for number in range(8):
                Image.new("L", (8, 8), 80 * code + number).save(place / f"\u00fc {number}.png")
    (home / "\u8a2d\u5b9a.yaml").write_text(
        "method: {name: fedavg}\n"
        "data: {source: 'imagefolder:\u56fe\u50cf'}\n"
        "partition: {kind: iid, clients: 2}\n"
        "clients: {net: linear, steps: 1, batch: 4, lr: 0.1}\n"
        "rounds: 1\nrunner: {kind: inline}\nmlflow: {enabled: false}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(home)
    return home


def said(monkeypatch, encoding, *arguments):
    """What a command writes to stdout and stderr of an encoding, and its exit code."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments), prog_name="tessera")
    for stream in (out, err):
        stream.flush()
    # Where a terminal has ASCII alone, click takes it for one of UTF-8 whose settings are wrong.
    return left.value.code, *(
        stream.buffer.getvalue().decode("utf-8" if encoding == "ascii" else encoding) for stream in (out, err)
    )


def as_written(name, encoding):
    return name if encoding == "ascii" else name.encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.filterwarnings("ignore:Glyph")  # the picture's font has no such letters
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_writes_names_of_every_language_to_every_terminal(folder, monkeypatch, encoding):
    for arguments in (
        ("plan", "\u8a2d\u5b9a.yaml"),
        ("partition", "\u8a2d\u5b9a.yaml", "--out", "\u00e9t\u00e9"),
        ("run", "\u8a2d\u5b9a.yaml", "--out", "l\u00e4ufe/\u4e00"),
        ("report", "l\u00e4ufe/\u4e00"),
        ("compare", "fedavg,fedprox", "\u8a2d\u5b9a.yaml", "--out", "vergleich/\u6bd4"),
    ):
        code, out, err = said(monkeypatch, encoding, *arguments)
        assert code == 0, (arguments, out, err)
        assert "Traceback" not in out + err
        if arguments[0] == "partition":
            assert as_written(NAMES[1], encoding) in out
    run = read(folder / "l\u00e4ufe" / "\u4e00")
    assert run.class_names == tuple(sorted(NAMES))
    assert "\u4e00" in said(monkeypatch, "utf-8", "report", "l\u00e4ufe/\u4e00")[1]
    assert all(name in (run.folder / "report.html").read_text(encoding="utf-8") for name in NAMES)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_refusals_and_json_are_written_to_every_terminal(folder, monkeypatch, encoding):
    code, _, err = said(monkeypatch, encoding, "plan", "\u8a2d\u5b9a.yaml", "--set", "data.source=imagefolder:\u7121")
    assert code == 2
    assert as_written("\u7121", encoding) in err
    code, _, err = said(monkeypatch, encoding, "plan", "\u7121.yaml")
    assert code == 2
    arguments = ("run", "\u8a2d\u5b9a.yaml", "--out", "\u4e8c", "--json")
    code, out, _ = said(monkeypatch, encoding, *arguments)
    assert code == 0
    assert json.loads(out)["preset"] == "\u8a2d\u5b9a.yaml"


def test_tables_are_of_ascii_where_the_terminal_has_no_lines(monkeypatch, tmp_path):
    with (tmp_path / "said").open("w", encoding="cp1252") as file:
        monkeypatch.setattr(sys, "stdout", file)
        written = terminal.console(to_stderr=False)
        assert written.encoding == "cp1252"
        assert Screen(written)._spinner.name == "line"
        written.print("\u8702", "\u00e4")
        written.file.close()
    assert (tmp_path / "said").read_text(encoding="cp1252") == "\\u8702 \u00e4\n"
    assert Screen(Console(file=io.StringIO()))._spinner.name == "dots"


def test_columns_clients_and_values_have_names_of_any_language(folder, monkeypatch):
    rows = 24
    table = pa.table(
        {
            "\u30e9\u30d9\u30eb": [NAMES[row % 3] for row in range(rows)],
            "gr\u00f6\u00dfe": np.arange(rows) + 0.5,
            "\u6751": [NAMES[row % 2] for row in range(rows)],
        }
    )
    (folder / "\u8868").mkdir()
    for half in ("train", "test"):
        pq.write_table(table, folder / "\u8868" / f"{half}.parquet")
    options = ("data.source=parquet:\u8868", "data.columns.label=\u30e9\u30d9\u30eb", "partition.kind=column")
    options += ("partition.column=\u6751", "partition.clients=2")
    chosen = [word for option in options for word in ("--set", option)]
    code, out, err = said(monkeypatch, "cp1252", "run", "\u8a2d\u5b9a.yaml", *chosen, "--out", "\u4e09")
    assert code == 0, out + err
    run = read(folder / "\u4e09")
    assert run.class_names == tuple(sorted(NAMES))
    held = Partition.load(folder / "\u4e09" / "partition.parquet", rows).rows
    assert sorted(map(len, held)) == [12, 12]
