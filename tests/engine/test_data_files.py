"""Parquet files and folders of images: what is read, and what is refused by file and row."""

import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from algorithms.tasks.images import ImageTask
from engine.data import DataConfig, DataError, load
from engine.data.images.decode import decode
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
    """The text of a refusal, remedy included."""
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
    assert f"{folder / 'train.parquet'} row 2 is not a readable PNG, JPEG or WebP image" in refusal(folder)


def test_other_formats_than_png_jpeg_and_webp_are_refused(folder):
    write(folder / "train.parquet", [picture(1, kind="JPEG"), picture(1, kind="GIF")], [0, 1])
    assert "train.parquet row 1 is not a readable PNG, JPEG or WebP image" in refusal(folder)


def test_a_row_without_an_image_is_named(folder):
    write(folder / "train.parquet", [GREY[0], None], [0, 1])
    assert "train.parquet row 1 has no value in column 'image'" in refusal(folder)


def test_of_sixteen_bits_the_upper_eight_are_read_and_said(folder):
    values = [0, 255, 256, 0x1234, 0xFFFF]
    write(folder / "train.parquet", [GREY[1], *(picture(value, mode="I;16") for value in values)], [0, 0, 0, 1, 2, 2])
    data = read(folder)
    assert data.train["image"][:, 0, 0, 0].tolist() == [100, 0, 0, 1, 0x12, 255]
    fact = f"{folder / 'train.parquet'}, image: 5 images of 16 bits a channel are read with the upper 8"
    assert data.facts == (fact,)


def test_images_of_sixteen_bits_that_use_few_of_them_are_said_to_lose_most(folder):
    write(folder / "train.parquet", [picture(4095, mode="I;16"), picture(7, mode="I;16"), GREY[2]], [0, 1, 2])
    data = read(folder)
    assert data.train["image"][:, 0, 0, 0].tolist() == [15, 0, 255]
    assert (
        "2 images of 16 bits a channel are read with the upper 8, of which the brightest pixel has 15" in data.facts[0]
    )


def deep_colour(*pixel):
    """A PNG file of one pixel with 16 bits a channel, by the specification: Pillow writes none. Red, green, blue, and
    alpha where it is given."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, {3: 2, 4: 6}[len(pixel)], 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(pixel)}H", *pixel)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_of_colours_of_sixteen_bits_the_upper_eight_are_read_and_said(folder):
    plain = io.BytesIO()
    Image.new("RGB", (1, 1), (1, 2, 3)).save(plain, "PNG")
    deep = deep_colour(0x1234, 0xFFFF, 0x00FF), deep_colour(0x8000, 0, 0x0100, 0x7FFF)
    write(folder / "train.parquet", [plain.getvalue(), *deep], [0, 1, 2])
    write(folder / "test.parquet", [plain.getvalue()], [0])
    data = read(folder)
    assert data.train["image"][:, :, 0, 0].tolist() == [[1, 2, 3], [0x12, 0xFF, 0], [0x80, 0, 1]]
    fact = f"{folder / 'train.parquet'}, image: 2 images of 16 bits a channel are read with the upper 8"
    assert data.facts == (fact,)


def turned(orientation, kind):
    """An image of 2x3 pixels with grey values from 0 to 5 and an orientation mark; lossless but for JPEG."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = 40 * np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(file, kind, exif=exif, **LOSSLESS[kind])
    return file.getvalue()


LOSSLESS = {"PNG": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True}}

UPRIGHT = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).T,
    8: np.rot90,
}
"""From the pixels as they are stored to those that a person sees, by the EXIF standard's orientation mark."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_images_stand_as_their_orientation_mark_says(kind, orientation):
    found = decode(turned(orientation, kind))[0][4::8, 4::8]
    wanted = UPRIGHT[orientation](40 * np.arange(6).reshape(2, 3))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= (2 if kind == "JPEG" else 0)


def test_every_reader_turns_images_upright(tmp_path):
    encoded = turned(6, "PNG")
    (tmp_path / "tree").mkdir()
    for half in ("train", "test"):
        (tmp_path / "tree" / half / "a").mkdir(parents=True)
        (tmp_path / "tree" / half / "a" / "1.png").write_bytes(encoded)
        write(tmp_path / f"{half}.parquet", [encoded], [0], class_names=("a",))
    for data in (read(tmp_path), read(tmp_path / "tree", "imagefolder")):
        assert np.array_equal(data.train["image"][0], decode(encoded))
        assert data.train["image"].shape == (1, 1, 24, 16)


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


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_every_spelling_of_an_image_that_is_read_is_read(tree):
    put(tree / "train/ant/3.webp", picture((30, 30, 30), mode="RGB", kind="WEBP"))
    put(tree / "train/ant/4.JPEG", picture(40, kind="JPEG"))
    put(tree / "train/bee/5.jfif", picture(50, kind="JPEG"))
    put(tree / "train/bee/deep/er/6.jpg", picture(60, kind="JPEG"))
    data = read(tree, "imagefolder")
    found = zip(data.train["image"][:, 0, 0, 0].tolist(), data.train_labels.tolist(), strict=True)
    assert sorted(found) == [(1, 0), (2, 0), (3, 1), (30, 0), (40, 0), (50, 1), (60, 1)]


def test_files_that_are_not_read_are_told_by_number_and_name(tree):
    for name in (".DS_Store", "bee/._1.png", "ant/.ipynb_checkpoints/1.png", "__MACOSX/._ant.png"):
        put(tree / "train" / name, b"of the system")
    data = read(tree, "imagefolder")
    assert len(data) == 3
    assert data.facts == (
        f"{tree / 'train'}: 4 hidden files passed over: "
        ".DS_Store, __MACOSX/._ant.png, ant/.ipynb_checkpoints/1.png, bee/._1.png",
        f"{tree / 'train'}: 1 other file passed over: ant/notes.txt",
    )


def test_names_of_any_bytes_are_told(tree):
    put(Path(os.fsdecode(os.fsencode(tree) + b"/test/bee/caf\xe9.txt")), b"")
    assert read(tree, "imagefolder").facts[-1].endswith(": 1 other file passed over: bee/caf\\udce9.txt")


@pytest.mark.parametrize("half", ["train", "test"])
def test_images_of_a_format_that_is_not_read_are_refused_by_number_and_name(tree, half):
    for name in ("1.gif", "2.TIFF", "3.bmp"):
        put(tree / half / "bee" / name, b"")
    found = refusal(tree, "imagefolder")
    assert f"{tree / half} has 3 images of a format that is not read: bee/1.gif, bee/2.TIFF, bee/3.bmp" in found
    assert "convert them to PNG" in found


def test_images_outside_of_a_class_are_refused(tree):
    put(tree / "test/1.png", GREY[0])
    assert f"{tree / 'test'} has 1 image outside of a class's folder: 1.png" in refusal(tree, "imagefolder")


def test_a_validation_folder_stands_for_a_missing_test_folder_and_is_told(tree):
    (tree / "test").rename(tree / "val")
    data = read(tree, "imagefolder")
    assert data.test_labels.tolist() == [1]
    assert f"{tree / 'val'} is used as the test set, as there is no test" in data.facts
    (tree / "val").rename(tree / "held")
    assert "data.validation holds out training rows" in refusal(tree, "imagefolder")


def test_classes_and_files_have_names_of_any_language(tree):
    (tree / "train/bee").rename(tree / "train/\u30cf\u30c1")
    (tree / "test/bee").rename(tree / "test/\u30cf\u30c1")
    put(tree / "train/\u30cf\u30c1/\u00e9\u00df \U0001f41d.png", picture(9))
    data = read(tree, "imagefolder")
    assert data.task.class_names == ("ant", "\u30cf\u30c1")
    assert sorted(data.train["image"][data.train_labels == 1][:, 0, 0, 0].tolist()) == [3, 9]


def test_a_corrupt_file_is_named_with_its_path(tree):
    (tree / "train/bee/1.png").write_bytes(b"no image")
    assert f"{tree / 'train/bee/1.png'} (row" in refusal(tree, "imagefolder")


def test_the_fingerprint_moves_with_a_single_pixel(folder):
    before = read(folder).fingerprint
    write(folder / "train.parquet", [GREY[0], picture(101), GREY[2]], [0, 1, 2])
    assert read(folder).fingerprint != before
    assert np.array_equal(read(folder).train["image"][1], np.full((1, 4, 4), 101))
