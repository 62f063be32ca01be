"""`tessera predict`: rows without labels from every kind of file, and a table of answers."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from engine.commands.cli import cli
from engine.data.half import fixed_order
from engine.models import load

QUICK = ("runner.kind=inline", "mlflow.enabled=false", "rounds=2", "clients.steps=5", "partition.clients=3")


def tessera(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def run(folder, preset, *overrides):
    settings = [word for override in (*QUICK, *overrides) for word in ("--set", override)]
    result = tessera("run", preset, *settings, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def refusal(*arguments):
    result = tessera("predict", *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def answers(*arguments):
    """What `tessera predict` prints, a mapping a row."""
    result = tessera("predict", *arguments)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.output)))


def test_a_folder_that_is_not_there_is_not_said_to_be_unfinished(tmp_path):
    assert refusal(tmp_path / "gone", "rows.txt").startswith(f"{tmp_path / 'gone'} is not there; name the folder")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "digits", "fedavg-digits", "rounds=4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first 40 test digits as PNG files in two folders, by number; a file of macOS beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    bunch = load_digits()
    rows = fixed_order(len(bunch.target))[1297:][:40]
    for number, row in enumerate(rows):
        path = folder / ("ab"[number % 2]) / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(bunch.images[row] * (255 / 16)).astype(np.uint8)).save(path)
    (folder / "a" / "._00.png").write_bytes(b"no image")
    return folder, bunch.target[rows]


def test_a_folder_of_images_is_answered_image_by_image(digits, pictures):
    folder, labels = pictures
    found = answers(digits, folder)
    assert [row["file"] for row in found] == [
        f"{'ab'[n % 2]}/{n:02d}.png" for n in [*range(0, 40, 2), *range(1, 40, 2)]
    ]
    right = [int(row["class"]) == labels[int(row["file"][2:4])] for row in found]
    assert sum(right) / 40 > 0.25, "better than guessing one of ten"
    for row in found:
        shares = {name: float(row[f"p_{name}"]) for name in map(str, range(10))}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(shares, key=shares.get) == row["class"]


def test_one_image_is_answered_as_it_is_among_others(digits, pictures):
    folder, _ = pictures
    (alone,) = answers(digits, folder / "b" / "07.png")
    among = next(row for row in answers(digits, folder) if row["file"] == "b/07.png")
    assert alone.pop("file") == "07.png"
    among.pop("file")
    assert alone.pop("class") == among.pop("class")
    assert [*map(float, alone.values())] == pytest.approx([*map(float, among.values())], abs=1e-6)


def test_a_table_is_written_as_its_name_says_and_never_over_another(digits, pictures, tmp_path):
    folder, _ = pictures
    printed = answers(digits, folder / "a")
    for name in ("answers.csv", "answers.parquet", "answers.json"):
        result = tessera("predict", digits, folder / "a", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    assert list(csv.DictReader((tmp_path / "answers.csv").open())) == printed
    kept = pq.read_table(tmp_path / "answers.parquet")
    assert kept.column("class").to_pylist() == [row["class"] for row in printed]
    assert json.loads((tmp_path / "answers.json").read_text()) == kept.to_pylist()
    assert json.loads(tessera("predict", digits, folder / "a", "--json").output) == kept.to_pylist()
    assert "is there already, and nothing is written over it" in refusal(
        digits, folder / "a", "--out", tmp_path / "answers.csv"
    )
    assert "let it end in .csv, .parquet, .json" in refusal(digits, folder / "a", "--out", tmp_path / "answers.xls")


def test_images_of_another_size_or_none_at_all_are_refused(digits, tmp_path):
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    assert "the images are 1x8x9 and the network takes 1x8x8" in refusal(digits, tmp_path)
    (tmp_path / "none").mkdir()
    assert "holds no image; images end in .png" in refusal(digits, tmp_path / "none")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    assert "broken.png is not a readable PNG, JPEG or WebP image" in refusal(digits, tmp_path / "broken.png")
    assert "there is no file or folder" in refusal(digits, tmp_path / "gone")
    (tmp_path / "notes.md").write_text("")
    assert "notes.md is none of .csv, .jsonl, .parquet, .txt" in refusal(digits, tmp_path / "notes.md")
    (tmp_path / "words.txt").write_text("three words here")
    assert "words.txt holds a text, and the network was trained on image (image)" in refusal(
        digits, tmp_path / "words.txt"
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run over a CSV of 60 rows with a number that may be missing, a word that is a number, and a class of words."""
    place = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    lines = ["size,zone,label"]
    for row in range(60):
        size = "" if row % 10 == 3 else f"{draw.normal() + 4 * (row % 2):.3f}"
        lines.append(f"{size},{('n1', 's2')[row % 2]},{('ham', 'spam')[row % 2]}")
    (place / "mail.csv").write_text("\n".join(lines))
    overrides = (f"data.source=csv:{place / 'mail.csv'}", "clients.net=mlp", "partition={kind: iid, clients: 3}")
    return run(place / "run", "fedavg-breast-cancer", *overrides)


def test_a_csv_without_the_label_is_answered_row_by_row(table, tmp_path):
    (tmp_path / "new.csv").write_text("zone,other,size\nn1,x,-0.5\ns2,y,4.1\n?,z,\n")
    found = answers(table, tmp_path / "new.csv")
    assert [row["row"] for row in found] == ["0", "1", "2"]
    assert [row["class"] for row in found[:2]] == ["ham", "spam"]
    pq.write_table(
        pa.table({"size": [-0.5, 4.1, None], "zone": ["n1", "s2", None], "label": ["?", "?", "?"]}),
        tmp_path / "new.parquet",
    )
    assert answers(table, tmp_path / "new.parquet") == found
    assert load(table).predict(pq.read_table(tmp_path / "new.parquet")).column("class").to_pylist() == [
        row["class"] for row in found
    ]


def test_a_table_that_lacks_a_column_or_holds_words_for_numbers_is_refused_by_file_and_line(table, tmp_path):
    (tmp_path / "short.csv").write_text("size\n1\n")
    assert "these rows have no column 'zone'; the network was trained on it: add it" in refusal(
        table, tmp_path / "short.csv"
    )
    (tmp_path / "words.csv").write_text("size,zone\n1,n1\nbig,n1\n")
    assert "words.csv line 3 has 'big' in column size, which holds numbers" in refusal(table, tmp_path / "words.csv")
    (tmp_path / "other.csv").write_text("sise,zune\n1,n1\n")
    assert "has none of the columns size, zone; did you mean sise? it has sise, zune" in refusal(
        table, tmp_path / "other.csv"
    )
    (tmp_path / "empty.csv").write_text("size,zone\n")
    assert "empty.csv has no row" in refusal(table, tmp_path / "empty.csv")


def test_lines_of_text_are_answered_line_by_line(tmp_path):
    folder = run(
        tmp_path / "run", "fedavg-sentences", "rounds=6", "clients.steps=20", "partition={kind: iid, clients: 3}"
    )
    (tmp_path / "said.txt").write_text("rain is expected over the hills\n\nthe striker won again at the stadium\n")
    found = answers(folder, tmp_path / "said.txt")
    assert [row["line"] for row in found] == ["1", "3"]
    assert [row["class"] for row in found] == ["weather", "sport"]
