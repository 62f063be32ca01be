"""Parquet files and folders of images: what is read, and what is refused by file and row."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from algorithms.tasks.images import ImageTask
from engine.data import DataConfig, DataError, load
from engine.data.task import TaskChoice


def picture(value, side=4, mode="L", kind="PNG"):
    """An image file of one colour."""
    file = io.BytesIO()
    Image.new(mode, (side, side), value).save(file, kind)
    return file.getvalue()


GREY = [picture(0), picture(100), picture(255)]


def write(path, images, labels, class_names=("a", "b", "c"), hub=None, **columns):
    """One Parquet file in the hub's layout."""
    rows = [{"bytes": image, "path": None} for image in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, struct), "label": pa.array(labels, pa.int64()), **columns})
    metadata = {"class_names": json.dumps(class_names)} if class_names else {}
    if hub:
        metadata["huggingface"] = json.dumps({"info": {"features": {"label": {"names": hub}}}})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.parquet", GREY, [0, 1, 2], domain=["x", "y", "x"], points=[[1], [2], [3]])
    write(tmp_path / "test.parquet", GREY[:1], [2])
    return tmp_path


def read(folder, kind="parquet", **fields):
    return load(DataConfig(source=f"{kind}:{folder}", **fields))


def refusal(folder, kind="parquet", **fields):
    """What a refusal says, remedy included."""
    with pytest.raises(DataError) as caught:
        read(folder, kind, **fields)
    assert caught.value.remedy
    return str(caught.value)


def test_images_labels_and_names_are_read(folder):
    data = read(folder)
    assert data.train["image"][:, 0, 0, 0].tolist() == [0, 100, 255]
    assert data.train_labels.tolist() == [0, 1, 2]
    assert data.test_labels.tolist() == [2]
    assert data.task.class_names == ("a", "b", "c")
    assert data.task.shape == (1, 4, 4)
    assert data.name == folder.name


def test_columns_of_words_and_numbers_are_kept_and_nested_ones_left(folder):
    assert {name: list(values) for name, values in read(folder).columns.items()} == {"domain": ["x", "y", "x"]}


def test_columns_follow_their_rows_when_some_are_held_out(folder):
    data = read(folder, validation=0.4)
    rows = [[0, 100, 255].index(image[0, 0, 0]) for image in data.train["image"]]
    assert list(data.columns["domain"]) == ["xyx"[row] for row in rows]


class FirstRowTwice(ImageTask):
    """A task that makes two examples of the first training row, and one of each other."""

    @classmethod
    def prepare(cls, train, test, roles, settings):
        prepared = super().prepare(train, test, roles, ImageTask.Settings())
        rows = np.array([0, *range(len(prepared.train["label"]))])
        return replace(prepared, train={name: values[rows] for name, values in prepared.train.items()}, rows=rows)


def test_columns_follow_the_examples_where_a_row_becomes_several(folder):
    config = DataConfig(source=f"parquet:{folder}")
    choice = TaskChoice(f"{__name__}:FirstRowTwice", FirstRowTwice.Settings())
    assert list(load(config, choice).columns["domain"]) == ["x", "x", "y", "x"]


def test_held_out_rows_leave_the_test_file_closed(folder):
    (folder / "test.parquet").unlink()
    assert len(read(folder, validation=0.4).test_labels) == 1


@pytest.fixture
def owned(tmp_path):
    """A folder of images that the server owns, whose labels are of other classes."""
    (tmp_path / "owned").mkdir()
    write(tmp_path / "owned" / "train.parquet", [picture(7), picture(9)], [5, 3], class_names=None)
    return tmp_path / "owned"


def test_a_folder_gives_public_images_without_labels(folder, owned):
    data = read(folder, public=str(owned))
    assert data.public["image"][:, 0, 0, 0].tolist() == [7, 9]
    assert "label" not in data.public
    assert data.train_labels.tolist() == [0, 1, 2]
    assert data.fingerprint != read(folder).fingerprint


def test_grey_public_images_become_coloured_where_those_to_learn_from_are(folder, owned):
    write(folder / "train.parquet", [picture((1, 2, 3), mode="RGB")], [0])
    assert read(folder, public=str(owned)).public["image"].shape == (2, 3, 4, 4)


def test_public_images_of_another_shape_are_refused(folder, owned):
    write(owned / "train.parquet", [picture(7, side=5)], [0])
    assert "training images are 1x4x4 but others are 1x5x5" in refusal(folder, public=str(owned))
    assert read(folder, public=str(owned), size=4).public["image"].shape == (1, 1, 4, 4)
    write(owned / "train.parquet", [picture((1, 2, 3), mode="RGB")], [0])
    assert "training images are 1x4x4 but others are 3x4x4" in refusal(folder, public=str(owned))


def test_a_public_folder_that_is_not_there_is_named_under_its_own_key(folder):
    assert refusal(folder, public="nowhere").startswith("data.public = ")


def test_only_the_rows_wanted_are_decoded(folder):
    write(folder / "train.parquet", [*GREY[:2], b"not an image"], [0, 1, 2])
    assert len(read(folder, limit=2).train_labels) == 2


def test_row_groups_behind_the_limit_are_not_even_read(folder):
    path = folder / "train.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset : column.dictionary_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    path.write_bytes(content)
    assert len(read(folder, limit=2).train_labels) == 2
    assert f"{path} is not a readable Parquet file" in refusal(folder)


def test_names_of_the_hubs_description_serve_where_class_names_are_missing(folder):
    for half in ("train", "test"):
        write(folder / f"{half}.parquet", GREY, [0, 1, 1], class_names=None, hub=["cat", "dog"])
    assert read(folder).task.class_names == ("cat", "dog")


def test_classes_without_names_are_numbered_over_the_whole_file(folder):
    for half in ("train", "test"):
        write(folder / f"{half}.parquet", GREY, [0, 1, 4], class_names=None)
    assert read(folder, limit=1).task.class_names == ("0", "1", "2", "3", "4")


def test_grey_images_among_coloured_ones_become_coloured(folder):
    write(folder / "train.parquet", [picture(7), picture((1, 2, 3), mode="RGB")], [0, 1])
    data = read(folder)
    assert data.train["image"][:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]
    assert data.test["image"].shape == (1, 3, 4, 4)


def test_transparency_is_dropped(folder):
    write(folder / "train.parquet", [picture((1, 2, 3, 0), mode="RGBA")], [0])
    assert read(folder).train["image"][0, :, 0, 0].tolist() == [1, 2, 3]


def test_a_missing_file_is_named(folder):
    (folder / "test.parquet").unlink()
    assert f"there is no file {folder / 'test.parquet'}" in refusal(folder)


def test_a_damaged_parquet_file_is_named(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
    assert f"{folder / 'train.parquet'} is not a readable Parquet file" in refusal(folder)


def test_columns_that_cannot_be_read_are_named_with_their_types_where_none_is_left(folder):
    for half in ("train", "test"):
        pq.write_table(pa.table({"img": [b""], "points": [[1]], "label": [0]}), folder / f"{half}.parquet")
    message = refusal(folder)
    assert "train.parquet: no column of numbers or categories is left to learn from" in message
    assert "img is binary, not struct<bytes, path>; points is list<" in message


def test_a_column_that_is_named_and_missing_is_refused_beside_those_there_are(folder):
    message = refusal(folder, columns={"image": "img"})
    assert message.startswith('data.columns.image = "img": ')
    assert "there is no column 'img'; " in message
    assert "train.parquet has image, label, domain" in message


def test_a_column_that_is_named_and_holds_something_else_is_refused(folder):
    message = refusal(folder, columns={"image": "domain"})
    assert message.startswith('data.columns.image = "domain": ')
    assert "holds category values, not image" in message


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named_with_its_row(folder, label):
    write(folder / "train.parquet", GREY, [0, label, 2])
    assert f"train.parquet row 1 has label {label}, but the 3 classes are a, b, c" in refusal(folder)


def test_a_row_without_a_label_is_named(folder):
    write(folder / "test.parquet", GREY, [0, 1, None])
    assert "test.parquet row 2 has no label" in refusal(folder)


def test_a_corrupt_image_is_named_with_file_and_row(folder):
    write(folder / "train.parquet", [GREY[0], GREY[1], GREY[2][:50]], [0, 1, 2])
    assert f"{folder / 'train.parquet'} row 2 is not a readable PNG or JPEG image" in refusal(folder)


def test_other_formats_than_png_and_jpeg_are_refused(folder):
    write(folder / "train.parquet", [picture(1, kind="JPEG"), picture(1, kind="GIF")], [0, 1])
    assert "train.parquet row 1 is not a readable PNG or JPEG image" in refusal(folder)


def test_a_row_without_an_image_is_named(folder):
    write(folder / "train.parquet", [GREY[0], None], [0, 1])
    assert "train.parquet row 1 has no value in column 'image'" in refusal(folder)


def test_pixels_of_more_than_eight_bits_are_refused(folder):
    write(folder / "train.parquet", [picture(70, mode="I;16")], [0])
    assert "row 0 has pixels of mode 'I;16'" in refusal(folder)


def test_images_of_two_sizes_are_refused_with_both_unless_scaled(folder):
    write(folder / "train.parquet", [GREY[0], picture(9, side=6)], [0, 1])
    message = refusal(folder)
    assert "row 1 is 6x6 pixels" in message
    assert "row 0 is 4x4" in message
    assert read(folder, size=5).train["image"].shape == (2, 1, 5, 5)


def test_halves_of_two_sizes_are_refused(folder):
    write(folder / "test.parquet", [picture(9, side=6)], [0])
    assert "training images are 1x4x4 but others are 1x6x6" in refusal(folder)


def test_a_coloured_test_set_does_not_fit_a_grey_training_set(folder):
    write(folder / "test.parquet", [picture((1, 2, 3), mode="RGB")], [0])
    assert "training images are 1x4x4 but others are 3x4x4" in refusal(folder)


def test_halves_of_other_classes_are_refused(folder):
    write(folder / "test.parquet", GREY, [0, 1, 2], class_names=("a", "c", "b"))
    assert "training classes are a, b, c but test classes are a, c, b" in refusal(folder)


@pytest.mark.parametrize(("half", "word"), [("train", "training"), ("test", "test")])
def test_an_empty_half_is_refused(folder, half, word):
    write(folder / f"{half}.parquet", [], [])
    assert f"the {word} set is empty" in refusal(folder)


def test_class_names_that_are_no_list_of_words_are_refused(folder):
    write(folder / "train.parquet", GREY, [0, 1, 2], class_names={"a": 0})
    assert "class_names is {'a': 0}" in refusal(folder)


@pytest.fixture
def tree(tmp_path):
    """Two classes: of `ant` two grey training images, of `bee` one."""
    for name, value in (("train/bee/1.png", 3), ("train/ant/2.png", 2), ("train/ant/1.PNG", 1), ("test/bee/1.png", 3)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(value))
    (tmp_path / "train/ant/notes.txt").write_text("passed over")
    return tmp_path


def test_a_folder_of_images_names_its_classes_in_order(tree):
    data = read(tree, "imagefolder")
    pairs = zip(data.train["image"][:, 0, 0, 0].tolist(), data.train_labels.tolist(), strict=True)
    assert sorted(pairs) == [(1, 0), (2, 0), (3, 1)]
    assert data.task.class_names == ("ant", "bee")
    assert data.test_labels.tolist() == [1]


def test_the_first_rows_of_a_folder_are_a_fair_sample(tmp_path):
    for label in range(2):
        for number in range(50):
            for half in ("train", "test"):
                path = tmp_path / half / str(label) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(GREY[0])
    labels = read(tmp_path, "imagefolder", limit=40).train_labels
    assert 10 <= labels.sum() <= 30


def test_a_folder_without_halves_is_told_the_layout(tmp_path):
    assert "lay images out as train/CLASS" in refusal(tmp_path, "imagefolder")


def test_a_class_without_images_is_named(tree):
    (tree / "train/cow").mkdir()
    assert f"{tree / 'train/cow'} holds no image" in refusal(tree, "imagefolder")


def test_a_test_class_without_training_folder_is_named(tree):
    (tree / "test/cow").mkdir()
    assert f"{tree / 'test/cow'} is of a class that train has no folder for" in refusal(tree, "imagefolder")


def test_a_corrupt_file_is_named_with_its_path(tree):
    (tree / "train/bee/1.png").write_bytes(b"no image")
    assert f"{tree / 'train/bee/1.png'} (row" in refusal(tree, "imagefolder")


def test_the_fingerprint_moves_with_a_single_pixel(folder):
    before = read(folder).fingerprint
    write(folder / "train.parquet", [GREY[0], picture(101), GREY[2]], [0, 1, 2])
    assert read(folder).fingerprint != before
    assert np.array_equal(read(folder).train["image"][1], np.full((1, 4, 4), 101))
