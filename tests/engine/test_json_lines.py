"""JSON lines as data: halves, columns, missing values, and what is wrong in which line."""

import json
import os

import pyarrow.parquet as pq
import pytest

from algorithms.core.seeds import Seed
from engine.data import DataConfig, DataError, load, questions
from engine.data.half import rows_of_half
from engine.data.tables.json_lines import read
from engine.data.task import TaskChoice, find_task
from engine.partition import PartitionConfig, divide

REAL = pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="TESSERA_DATA names no folder of real data")


def write(path, objects):
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


def half_of_file(path, half="train", limit=None):
    return read(DataConfig(source=f"jsonl:{path}"), half, limit)


def values(half):
    return {name: (column.content, column.values.tolist()) for name, column in half.columns.items()}


def refusal(path):
    with pytest.raises(DataError) as caught:
        half_of_file(path)
    return str(caught.value)


def test_a_folder_has_a_file_a_half_and_its_columns_are_of_words_and_numbers(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "one", "n": 1, "ok": True}, {"text": "two", "n": 2.5, "ok": False}])
    write(tmp_path / "test.jsonl", [{"text": "three", "n": 3, "ok": True}])
    assert values(half_of_file(tmp_path)) == {
        "text": ("text", ["one", "two"]),
        "n": ("number", [1.0, 2.5]),
        "ok": ("text", ["true", "false"]),
    }
    assert values(half_of_file(tmp_path, "test"))["text"] == ("text", ["three"])


def test_of_one_file_a_fifth_is_the_test_half_by_the_fixed_order(tmp_path):
    path = write(tmp_path / "all.jsonl", [{"n": n} for n in range(20)])
    for half, count in (("train", 16), ("test", 4)):
        rows = rows_of_half(20, half)
        assert values(half_of_file(path, half))["n"][1] == rows.tolist()
        assert len(rows) == count
    assert len(half_of_file(path, limit=3)) == 3


def test_a_name_that_a_line_lacks_or_has_as_null_is_missing_there(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"a": "x"}, {"b": 1}, {"a": None, "b": 2.0}]).parent
    (tmp_path / "test.jsonl").write_text("{}\n")
    found = values(half_of_file(path))
    assert found["a"] == ("text", ["x", None, None])
    assert found["b"][1][1:] == [1.0, 2.0]
    assert found["b"][1][0] != found["b"][1][0]


def test_empty_lines_are_passed_over_and_places_are_those_of_the_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('\ufeff\n{"a": "x"}\n\n{"a": "y"}\r\n', encoding="utf-8")
    half = half_of_file(tmp_path)
    assert half.columns["a"].values.tolist() == ["x", "y"]
    assert half.place(1) == f"{path} line 4"


def test_objects_inside_are_not_read_and_said(tmp_path):
    write(tmp_path / "train.jsonl", [{"a": "x", "more": {"b": 1}}])
    assert half_of_file(tmp_path).unread["more"].startswith("more is struct<b: int64>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is no JSON (Expecting value"),
        ('{"a": 1}\n[1]\n', "line 2 holds a list; write objects"),
        ("null\n", "line 1 holds null; write objects"),
        ('{"a": 1}\n\n{"a": "x"}\n', "a is a number in {path} line 1 and a text in line 3; write one kind of value"),
        ('{"a": [1]}\n{"a": {}}\n', "a is a list in {path} line 1 and an object in line 2"),
        ('{"a": "\\ud800"}\n', "a of {path} cannot be read ("),
        ("\n", "is empty; write a JSON object a line"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, words):
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    assert words.format(path=path) in refusal(tmp_path)


def test_a_file_that_is_not_there_or_no_utf8_is_named(tmp_path):
    assert f"there is no file {tmp_path / 'train.jsonl'}; correct the path; a folder needs train.jsonl" in refusal(
        tmp_path
    )
    (tmp_path / "train.jsonl").write_bytes(b'{"a": "\xff"}')
    assert "is not UTF-8" in refusal(tmp_path)


def test_classes_are_those_of_all_rows_though_fewer_are_used(tmp_path):
    for half in ("train", "test"):
        write(tmp_path / f"{half}.jsonl", [{"x": 0.5 * n, "label": "abc"[n % 3]} for n in range(9)])
    data = load(DataConfig(source=f"jsonl:{tmp_path}", limit=2, test_limit=2))
    assert data.task.classes == 3


@REAL
def test_instructions_of_the_shared_folder_are_read_by_names_of_columns_from_both_formats(tmp_path):
    source = os.path.join(os.environ["TESSERA_DATA"], "text", "instructions.parquet")
    table = pq.read_table(source)
    path = write(tmp_path / "instructions.jsonl", table.to_pylist())
    choice = TaskChoice("language", find_task("language").Settings())
    keys = {"columns": {"text": "output"}, "limit": 200, "test_limit": 50}
    from_parquet, from_lines = (
        load(DataConfig(source=place, **keys), choice) for place in (f"parquet:{source}", f"jsonl:{path}")
    )
    assert from_lines.fingerprint == from_parquet.fingerprint
    assert {"instruction", "input", "output", "category", "task"} <= from_lines.contents.keys()
    config = PartitionConfig(kind="dirichlet", column="category", alpha=0.3, clients=4)
    partition = divide(config, len(from_lines), None, 0, from_lines.columns, Seed(0))
    assert partition.sizes.sum() == len(from_lines)


def test_a_network_can_be_asked_about_json_lines(tmp_path):
    path = write(tmp_path / "asked.jsonl", [{"a": "one", "b": 1}, {"a": "two", "b": 2, "c": "more"}])
    question = questions.read(path, questions.Reading({"a": "text", "b": "number"}, {}, None))
    assert question.columns["a"].values.tolist() == ["one", "two"]
    assert question.columns["b"].values.tolist() == [1.0, 2.0]
    assert question.place(1) == f"{path} line 2"
    path.write_text("{")
    with pytest.raises(questions.QuestionError, match="line 1 is no JSON"):
        questions.read(path, questions.Reading({"a": "text"}, {}, None))
