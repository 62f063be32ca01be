"""Columns of every content: what a Parquet file, a CSV file, the hub or scikit-learn holds, and what is refused."""

import datetime
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_wine

from engine.data import DataConfig, DataError, load
from engine.data.contents import is_text
from engine.data.half import rows_of_half
from engine.data.tables import sentences
from engine.data.tables.arrow import half_of, signals
from engine.data.task import TaskChoice, find_task
from tests.engine.test_data_files import GREY, picture, read, refusal, write

REAL = pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="TESSERA_DATA names no folder of real data")


def columns_of(table):
    """Content and values of a table's columns, and the words for those that are not read."""
    half = half_of(pa.table(table), DataConfig(source="parquet:x"), lambda row: f"row {row}", "x")
    return {name: (column.content, column.values.tolist()) for name, column in half.columns.items()}, half.unread


def parquet(folder, train, test=None):
    """A folder with both halves, the same where no test half is given."""
    for half, columns in (("train", train), ("test", test or train)):
        pq.write_table(pa.table(columns), folder / f"{half}.parquet")
    return folder


# --- Arrow's types ----------------------------------------------------------------------------------------------------


def test_numbers_of_every_type_are_numbers_and_nulls_are_nan():
    columns, _ = columns_of({"whole": pa.array([1, None], pa.int16()), "none": pa.nulls(2)})
    assert columns["whole"][1][0] == 1.0
    assert np.isnan(columns["whole"][1][1])
    assert columns["whole"][0] == columns["none"][0] == "number"
    assert np.isnan(columns["none"][1]).all()


def test_words_dates_and_truth_values_are_words_and_nulls_none():
    columns, _ = columns_of(
        {
            "word": pa.array(["a", None]).dictionary_encode(),
            "flag": pa.array([True, None]),
            "day": pa.array([datetime.date(2024, 2, 29), None]),
        }
    )
    assert columns == {
        "word": ("text", ["a", None]),
        "flag": ("text", ["true", None]),
        "day": ("text", ["2024-02-29", None]),
    }


def test_whole_numbers_that_no_floating_point_number_tells_apart_are_words():
    columns, _ = columns_of({"id": [2**53 + 1, 2**53 + 2]})
    assert columns["id"] == ("text", ["9007199254740993", "9007199254740994"])


def test_lists_of_one_length_are_signals_of_one_channel_and_others_are_not_read():
    same, several = pa.array([[1.0, 2.0], [3.0, None]]), pa.array([[1.0], [2.0, 3.0]])
    columns, unread = columns_of({"same": same, "several": several, "whole": [[1], [2]]})
    assert columns["same"][0] == "signal"
    assert columns["same"][1][0] == [[1.0, 2.0]]
    assert np.isnan(columns["same"][1][1][0][1])
    assert unread["several"].endswith("of several lengths: row 1 has 2 values, row 0 has 1")
    assert unread["whole"].startswith("whole is list<")


@pytest.mark.parametrize("task", [None, "signals"])
def test_signals_of_several_lengths_are_refused_as_signals_with_two_rows(tmp_path, task):
    folder = parquet(tmp_path, {"signal": [[1.0, 2.0], [3.0, 4.0], [5.0]] * 4, "label": [0, 1, 0] * 4})
    choice = None if task is None else TaskChoice(task, find_task(task).Settings())
    with pytest.raises(DataError) as caught:
        load(DataConfig(source=f"parquet:{folder}"), choice)
    file = folder / "train.parquet"
    assert str(caught.value).endswith(
        f"signal is list<element: double> of several lengths: {file} row 2 has 1 values, {file} row 0 has 2; "
        "cut or pad its lists: a signal has as many samples in every row"
    )


def test_the_shape_in_the_metadata_cuts_a_list_into_channels():
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 6)
    table = pa.table({"signal": values}).replace_schema_metadata({"shape": json.dumps([2, 3])})
    half = half_of(table, DataConfig(source="parquet:x"), str, "x")
    assert half.columns["signal"].values.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_a_slice_of_lists_is_read_from_its_own_place():
    values = pa.chunked_array([pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])]).slice(1, 1)
    assert signals(values, None).tolist() == [[[3.0, 4.0]]]


def test_two_columns_of_one_name_are_refused():
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="has two columns a"):
        half_of(table, DataConfig(source="parquet:x"), str, "x")


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "is_long"),
    [
        (["the cat sat", "a dog ran off", "it rains again"], True),
        (["the cat sat", "the cat sat", "the cat sat"], False),  # one value of three
        (["cat", "dog", "cow"], False),  # one word each
        ([f"number {n} of many" for n in range(31)] * 5, True),  # 31 different ones of 155
        ([f"number {n} of many" for n in range(30)] * 5, False),  # 30 of 150
        (["the cat sat", None, None, "a dog ran"], True),  # missing ones do not count
    ],
)
def test_words_are_text_where_they_are_long_and_different(values, is_long):
    assert is_text(np.array(values, dtype=object)) == is_long


# --- Classes ----------------------------------------------------------------------------------------------------------


def labels(folder, train, test, **fields):
    """Class names, and the classes of both halves, of labels beside a number."""
    data = read(
        parquet(
            folder, {"x": np.arange(len(train)) + 0.5, "label": train}, {"x": np.arange(len(test)) + 0.5, "label": test}
        ),
        **fields,
    )
    return data.task.class_names, data.train_labels.tolist(), data.test_labels.tolist(), data.facts


def test_words_are_classes_in_the_order_of_the_alphabet(tmp_path):
    assert labels(tmp_path, ["dog", "cat", "dog"], ["cat"])[:3] == (("cat", "dog"), [1, 0, 1], [0])


def test_numbers_from_zero_of_which_half_occur_are_the_classes_themselves(tmp_path):
    assert labels(tmp_path, [0, 1, 5], [5]) == (("0", "1", "2", "3", "4", "5"), [0, 1, 5], [5], ())


@pytest.mark.parametrize("numbers", [[1, 2, 3], [0, 1, 6], [0, 7, 2**33], [-1, 1, 2]])
def test_numbers_with_gaps_or_another_beginning_are_numbered_and_said(tmp_path, numbers):
    names, train, test, facts = labels(tmp_path, numbers, numbers[::-1])
    assert names == tuple(map(str, numbers))
    assert (train, test) == ([0, 1, 2], [2, 1, 0])
    assert facts == (f"label: its 3 different values {', '.join(names)} are the classes",)


def test_a_number_for_almost_every_row_is_no_class(tmp_path):
    folder = parquet(tmp_path, {"x": np.arange(24.0), "label": np.arange(24) * 3_000_000})
    assert "column label of" in refusal(folder)
    assert "has 24 different values in 24 rows, too many for classes" in refusal(folder)


def test_a_test_label_that_no_training_row_has_is_named_with_its_row(tmp_path):
    folder = parquet(tmp_path, {"x": [0.5, 1.5], "label": ["a", "b"]}, {"x": [0.5, 1.5], "label": ["a", "c"]})
    assert "test.parquet row 1 has label c, but the 2 classes are a, b" in refusal(folder)


def test_another_column_of_classes_is_named(tmp_path):
    table = {"x": [0.5, 1.5], "coarse": ["a", "a"], "fine": ["b", "c"]}
    data = read(parquet(tmp_path, table), columns={"label": "fine"})
    assert data.task.class_names == ("b", "c")
    assert data.columns["coarse"].tolist() == ["a", "a"]


def test_names_of_the_hubs_description_belong_to_their_column(tmp_path):
    features = {"fine": {"names": ["b", "c"], "_type": "ClassLabel"}, "img": {"_type": "Image"}}
    images = pa.array([{"bytes": GREY[0], "path": None}] * 2)
    table = pa.table({"img": images, "fine": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for half in ("train", "test"):
        pq.write_table(table, tmp_path / f"{half}.parquet")
    data = read(tmp_path)
    assert data.task.class_names == ("b", "c")
    assert data.train_labels.tolist() == [1, 0]
    assert data.train["image"].shape == (2, 1, 4, 4)


# --- Shards and single files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inner", "other"), [(".", "test"), ("data", "validation")])
def test_shards_are_read_in_order_as_the_hub_writes_them(tmp_path, inner, other):
    place = tmp_path / inner
    place.mkdir(exist_ok=True)
    for number in range(2):
        path = place / f"train-{number:05}-of-00002.parquet"
        write(path, GREY[:2], [number, 2])
    write(place / f"{other}-00000-of-00001.parquet", GREY[:1], [1])
    data = read(tmp_path)
    assert data.train_labels.tolist() == [0, 2, 1, 2]
    assert data.test_labels.tolist() == [1]
    assert read(tmp_path, limit=3).train_labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("word", ["validation", "valid", "val", "dev"])
def test_a_validation_split_is_said_to_stand_for_the_test_set_and_gives_way_to_one(tmp_path, word):
    write(tmp_path / "train.parquet", GREY, [0, 1, 2])
    write(tmp_path / f"{word}.parquet", GREY[:1], [1])
    data = read(tmp_path)
    assert data.test_labels.tolist() == [1]
    assert data.facts == (f"{tmp_path / word}.parquet is used as the test set, as there is no test",)
    write(tmp_path / "test-00000-of-00001.parquet", GREY[:1], [2])
    assert read(tmp_path).test_labels.tolist() == [2]
    assert read(tmp_path).facts == ()


def test_a_part_of_a_set_lies_in_a_folder_of_its_own_as_on_the_hub(tmp_path):
    part = tmp_path / "plain_text"
    for half in ("train", "test"):
        (part / half).mkdir(parents=True)
        write(part / half / "0000.parquet", GREY, [0, 1, 2])
        (part / half / "._0000.parquet").write_bytes(b"of the system")
    assert read(tmp_path).train_labels.tolist() == [0, 1, 2]
    part.rename(tmp_path / "fine")
    (tmp_path / "coarse").mkdir()
    write(tmp_path / "coarse" / "train.parquet", GREY, [0, 1, 2])
    assert f"{tmp_path} has 2 sets: coarse, fine; name one, as parquet:{tmp_path}/coarse" in refusal(tmp_path)


@pytest.mark.parametrize("names", [["0-of-00002"], ["0-of-00003", "2-of-00003"], ["0-of-00001", "0-of-00002"]])
def test_shards_of_which_some_are_missing_are_refused(tmp_path, names):
    for name in names:
        write(tmp_path / f"train-0000{name}.parquet", GREY, [0, 1, 2])
    write(tmp_path / "test.parquet", GREY, [0, 1, 2])
    assert f"{tmp_path} has {len(names)} shards, of " in refusal(tmp_path)
    assert f"train-0000{names[0]}.parquet" in refusal(tmp_path)


def test_a_row_of_a_shard_is_named_by_its_file(tmp_path):
    write(tmp_path / "train-0.parquet", GREY, [0, 1, 2])
    write(tmp_path / "train-1.parquet", [GREY[0], b"none"], [0, 1])
    write(tmp_path / "test.parquet", GREY, [0, 1, 2])
    assert "train-1.parquet row 1 is not a readable PNG, JPEG or WebP image" in refusal(tmp_path)


def test_shards_of_other_columns_are_refused(tmp_path):
    write(tmp_path / "train-0.parquet", GREY, [0, 1, 2])
    write(tmp_path / "train-1.parquet", GREY, [0, 1, 2], domain=["x", "y", "z"])
    write(tmp_path / "test.parquet", GREY, [0, 1, 2])
    assert "train-1.parquet has the columns image" in refusal(tmp_path)


def test_of_one_file_a_fifth_is_the_test_half_and_every_row_is_used_once(tmp_path):
    pq.write_table(pa.table({"row": np.arange(50.0), "label": ["a", "b"] * 25}), tmp_path / "all.parquet")
    data = load(DataConfig(source=f"parquet:{tmp_path / 'all.parquet'}"))
    assert (len(data), len(data.test_labels)) == (40, 10)
    train = data.columns["row"]
    assert np.array_equal(np.sort(np.concatenate([train, rows_of_half(50, "test")])), np.arange(50))
    assert train.tolist() != sorted(train)
    assert np.array_equal(train % 2, data.train_labels)


@given(st.integers(0, 300))
def test_the_halves_of_one_set_of_rows_share_none_and_leave_none(count):
    train, test = rows_of_half(count, "train"), rows_of_half(count, "test")
    assert len(test) == round(count / 5)
    assert sorted([*train, *test]) == list(range(count))


# --- Several inputs, and words of a partition -------------------------------------------------------------------------


def test_only_images_that_are_named_are_decoded(tmp_path):
    for half in ("train", "test"):
        other = pa.array([{"bytes": b"no image", "path": None}] * 3)
        write(tmp_path / f"{half}.parquet", GREY, [0, 1, 2], other=other)
    assert "is not a readable PNG, JPEG or WebP image" in refusal(tmp_path)
    assert read(tmp_path, columns={"image": "image"}).task.title == "image classification"


def test_two_columns_of_images_are_two_modalities(tmp_path):
    other = pa.array([{"bytes": picture(9, side=6), "path": None}] * 3)
    for half in ("train", "test"):
        write(tmp_path / f"{half}.parquet", GREY, [0, 1, 2], sound=other)
    assert list(read(tmp_path).task.form.parts) == ["image", "sound"]


def test_images_and_lists_that_are_null_are_modalities_that_a_row_lacks(tmp_path):
    columns = {"image": pa.array([{"bytes": GREY[2], "path": None}, None, {"bytes": None, "path": "x.png"}])}
    columns |= {"sound": pa.array([None, [1.0, 2.0], [3.0, 4.0]]), "label": [0, 1, 1]}
    data = read(parquet(tmp_path, columns))
    assert data.train["present"].tolist() == [[True, False], [False, True], [False, True]]
    assert data.train["image.image"][:, 0, 0, 0].tolist() == [255, 0, 0]
    assert data.train["sound.signal"].tolist() == [[[0, 0]], [[1, 2]], [[3, 4]]]


def test_a_row_is_named_where_an_image_behind_a_gap_cannot_be_read(tmp_path):
    images = pa.array([None, {"bytes": GREY[0], "path": None}, {"bytes": b"no image", "path": None}])
    assert "train.parquet row 2 is not a readable" in refusal(parquet(tmp_path, {"image": images, "label": [0, 1, 1]}))


def test_a_row_without_its_only_signal_is_named(tmp_path):
    folder = parquet(tmp_path, {"sound": [[1.0], None], "label": [0, 1]})
    assert f"{folder / 'train.parquet'} row 1 has no value in column 'sound'" in refusal(folder)


def test_a_column_that_only_the_training_half_has_is_missed_in_the_test_file(tmp_path):
    folder = parquet(tmp_path, {"x": [0.5, 1.5], "label": ["a", "b"]}, {"z": [0.5], "label": ["a"]})
    said = refusal(folder)
    assert f"the test rows of {folder / 'test.parquet'} have no column 'x'" in said
    assert "train.parquet" not in said


def test_columns_of_a_partition_are_whole_numbers_where_they_are_whole(tmp_path):
    table = {"subject": [3, 1], "score": [0.5, 1.0], "label": ["a", "b"]}
    columns = read(parquet(tmp_path, table)).columns
    assert columns["subject"].tolist() == [3, 1]
    assert columns["subject"].dtype == np.int64
    assert columns["score"].tolist() == [0.5, 1.0]


def test_a_test_column_of_another_type_is_refused(tmp_path):
    folder = parquet(tmp_path, {"x": [0.5, 1.5], "label": ["a", "b"]}, {"x": ["u", "v"], "label": ["a", "b"]})
    assert "column x holds number in the training rows but text in the test rows" in refusal(folder)


# --- CSV --------------------------------------------------------------------------------------------------------------

TABLE = "height,colour,label\n1.5,red,yes\n-2e1,,no\n,blue,yes\n"


def csv_folder(folder, train=TABLE, test=TABLE):
    for half, text in (("train", train), ("test", test)):
        (folder / f"{half}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_csv_file_has_numbers_where_every_value_is_one_and_words_elsewhere(tmp_path):
    data = read(csv_folder(tmp_path), "csv")
    assert data.columns["height"][:2].tolist() == [1.5, -20.0]
    assert np.isnan(data.columns["height"][2])
    assert data.columns["colour"].tolist() == ["red", None, "blue"]
    assert data.train_labels.tolist() == [1, 0, 1]
    assert data.task.title == "tabular classification"


def test_quotes_commas_blanks_and_a_byte_order_mark_are_csv(tmp_path):
    text = b'\xef\xbb\xbfx, note,label\r\n1,"a, ""b""",0\r\n\r\n2, c ,1\r\n'
    data = read(csv_folder(tmp_path, text, text), "csv")
    assert data.columns["note"].tolist() == ['a, "b"', "c"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,label\n1,0\n2,1,3\n", "train.csv line 3 has 3 values, but the header has 2 columns"),
        ("a,label\n1\n", "train.csv line 2 has 1 values, but the header has 2 columns"),
        ('a,label\n"x\ny",0\n1,0,0\n', "train.csv line 4 has 3 values"),
        ("a,a\n1,0\n", "train.csv line 1 has the column a twice"),
        ("a,\n1,0\n", "train.csv line 1 has no name for column 2"),
        ("1,2\n3,4\n", "train.csv line 1 holds numbers alone, not names of columns"),
        ("a;label\n1;0\n", "train.csv line 1 has the header 'a;label', without a comma; separate values by commas"),
        (b"a,label\n1,0\n\xe4,1\n", "train.csv line 3 is not UTF-8 (byte 0xe4); save the file as UTF-8"),
        ('a,label\n"1,0\n', "train.csv line 2 is no CSV"),
        ("", "train.csv is empty"),
        ("a,label\n", "the training set is empty"),
        ("x\x1b,label\n1,0\n", "train.csv line 1 has names that cannot be printed"),
    ],
)
def test_what_is_no_csv_file_is_named_with_its_line(tmp_path, text, words):
    assert words in refusal(csv_folder(tmp_path, text), "csv")


def test_a_word_among_test_numbers_is_named_with_its_line(tmp_path):
    test = TABLE.replace("-2e1", "tall")
    assert "test.csv line 3 has 'tall' in column height, which holds numbers" in refusal(
        csv_folder(tmp_path, test=test), "csv"
    )


def test_what_a_column_holds_does_not_depend_on_the_limit(tmp_path):
    train = "x,label\n" + "1,a\n" * 5 + "word,b\n"
    data = read(csv_folder(tmp_path, train, train), "csv", limit=2)
    assert data.columns["x"].tolist() == ["1", "1"]
    assert data.task.class_names == ("a", "b")


def test_one_csv_file_is_split_as_one_file_and_its_lines_are_named(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("x,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(50)))
    data = load(DataConfig(source=f"csv:{path}"))
    assert (len(data), len(data.test_labels)) == (40, 10)
    path.write_text(path.read_text().replace("\n17,b", "\n17,"))
    with pytest.raises(
        DataError, match=r"all\.csv line 19 has no label"
    ):  # row 17 stands behind the header and 17 others
        load(DataConfig(source=f"csv:{path}"))


def test_a_target_that_is_no_number_is_refused_at_its_key(tmp_path):
    choice = TaskChoice("regression", find_task("regression").Settings())
    config = DataConfig(source=f"csv:{csv_folder(tmp_path)}", columns={"target": "colour"})
    with pytest.raises(DataError) as caught:
        load(config, choice)
    assert caught.value.key == "data.columns.target"
    assert "colour" in str(caught.value)


def test_a_target_that_is_missing_is_named_with_its_line(tmp_path):
    choice = TaskChoice("regression", find_task("regression").Settings())
    with pytest.raises(DataError, match=r"train\.csv line 4"):
        load(DataConfig(source=f"csv:{csv_folder(tmp_path)}", columns={"target": "height"}), choice)


# --- Sources without files --------------------------------------------------------------------------------------------


def test_tables_of_scikit_learn_have_the_names_it_gives_and_every_row_once():
    data, bunch = load(DataConfig(source="sklearn:wine")), load_wine()
    assert data.task.class_names == tuple(bunch.target_names)
    assert list(data.columns) == list(bunch.feature_names)
    assert np.array_equal(data.columns["alcohol"], bunch.data[rows_of_half(178, "train"), 0])
    assert np.array_equal(data.test_labels, bunch.target[rows_of_half(178, "test")])


def test_diabetes_is_a_regression_on_what_was_measured():
    data, bunch = load(DataConfig(source="sklearn:diabetes")), load_diabetes(scaled=False)
    assert data.task.title == "tabular regression"
    assert np.array_equal(data.columns["target"], bunch.target[rows_of_half(442, "train")])
    assert np.array_equal(data.columns["age"], bunch.data[rows_of_half(442, "train"), 0])


def test_sentences_are_the_same_every_time_and_have_topics_and_styles():
    data = load(DataConfig(source="generated:sentences"))
    assert data.fingerprint == load(DataConfig(source="generated:sentences")).fingerprint
    assert data.task.title == "text classification"
    assert data.task.class_names == tuple(sentences.TOPICS)
    assert set(data.columns["domain"]) == set(sentences.STYLES)
    assert len(data) + len(data.test_labels) == sentences.ROWS


def test_chat_reads_like_chat():
    data = load(DataConfig(source="generated:sentences"))
    chat = data.columns["text"][data.columns["domain"] == "chat"]
    assert all(text.startswith(("hey, ", "lol ", "guess what: ")) for text in chat)


# --- The hub ----------------------------------------------------------------------------------------------------------


class Fake:
    """Those parts of a `datasets.Dataset` that are used."""

    def __init__(self, table, split):
        self.table, self.split = table, split
        self.features = SimpleNamespace(arrow_schema=table.schema)

    def __len__(self):
        return len(self.table)

    def select(self, rows):
        return Fake(self.table.take(pa.array(list(rows))), self.split)

    def select_columns(self, names):
        return Fake(self.table.select(names), self.split)

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, rows):
        assert rows == slice(None)
        return self.table.replace_schema_metadata(None)


@pytest.fixture
def hub(monkeypatch):
    """Puts data sets on a hub: by name, splits with their columns."""
    sets = {}

    def load_dataset(name, part):
        if (name, part) not in sets:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub")
        return {split: Fake(table, split) for split, table in sets[name, part].items()}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return sets


def table(count):
    described = {"info": {"features": {"topic": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    columns = {"text": [f"word number {n} here" for n in range(count)], "topic": [n % 2 for n in range(count)]}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(described)})


def test_a_set_of_the_hub_is_read_with_its_class_names(hub):
    hub["owner/name", None] = {"train": table(40), "validation": table(4), "unsupervised": table(1)}
    data = load(DataConfig(source="hf:owner/name", limit=30))
    assert data.task.class_names == ("bad", "good")
    assert (len(data), data.test_labels.tolist()) == (30, [0, 1, 0, 1])
    assert data.columns["text"][3] == "word number 3 here"


def test_classes_without_names_are_counted_over_the_whole_split(hub):
    numbers = pa.table({"x": np.arange(4) + 0.5, "label": [0, 1, 2, 3]})
    hub["name", None] = {"train": numbers, "test": numbers}
    assert load(DataConfig(source="hf:name", limit=1, test_limit=1)).task.class_names == ("0", "1", "2", "3")


def test_a_part_of_one_split_is_split_as_one_file(hub):
    hub["name", "part"] = {"all": table(50)}
    data = load(DataConfig(source="hf:name:part"))
    assert (len(data), len(data.test_labels)) == (40, 10)
    assert data.columns["text"][0] == f"word number {rows_of_half(50, 'train')[0]} here"


def test_a_set_without_a_test_split_is_told_to_hold_rows_out(hub):
    hub["name", None] = {"train": table(40), "extra": table(4)}
    with pytest.raises(DataError, match=r"splits train, extra, and no test or validation; .*data\.validation"):
        load(DataConfig(source="hf:name"))
    assert len(load(DataConfig(source="hf:name", validation=0.25)).test_labels) == 10


def test_a_hub_that_cannot_be_reached_is_said_with_the_way_out(hub):
    with pytest.raises(
        DataError, match=r"cannot load nobody/none \(Couldn't reach 'nobody/none' on the Hub\); .*cache"
    ):
        load(DataConfig(source="hf:nobody/none"))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tessera-fl\[hf\]'"):
        load(DataConfig(source="hf:owner/name"))


# --- Real files -------------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.parametrize(
    ("source", "title", "form"),
    [
        ("sensor/har", "signal classification", "signals of 12 channels and 64 samples"),
        ("text/ag_news", "text classification", "texts of at most 64 tokens out of"),
        ("text/tiny_shakespeare.parquet", "language modelling", "sequences of 80 tokens out of"),
        ("tabular/adult", "tabular classification", "rows of 6 numbers and 8 categories"),
        ("audio/spoken_digits", "image classification", "images of 1x32x32"),
        ("multimodal/digits_av", "classification from several modalities", "image (images of 1x28x28) with audio"),
    ],
)
def test_real_sets_of_every_kind_find_their_task(source, title, form):
    data = load(DataConfig(source=f"parquet:{source}", limit=400, test_limit=100))
    assert data.task.title == title
    assert str(data.task.form).startswith(form)
