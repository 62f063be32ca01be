"""torchvision's data sets, read from small files in their native formats."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from engine.data import DataConfig, DataError, load
from engine.data.images.torchvision_sets import channels_first


def write_idx(path, array):
    """The IDX format of MNIST: two zero bytes, the type (8: bytes), the number of axes, the axes, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + axes + array.astype(np.uint8).tobytes())


def write_mnist(raw, train_labels, test_labels, middle=""):
    """Images whose every pixel is ten times their label."""
    for half, labels in (("train", train_labels), ("test" if middle else "t10k", test_labels)):
        images = np.multiply.outer(10 * np.array(labels), np.ones((28, 28)))
        write_idx(raw / f"{middle}{half}-images-idx3-ubyte", images)
        write_idx(raw / f"{middle}{half}-labels-idx1-ubyte", np.array(labels))


def read(name, root, **fields):
    return load(DataConfig(source=f"torchvision:{name}", root=root, **fields))


def refusal(name, root):
    with pytest.raises(DataError) as caught:
        read(name, root)
    return str(caught.value)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_sets_of_mnists_format_are_read_from_a_local_root(tmp_path, name):
    write_mnist(tmp_path / name / "raw", [3, 1, 9], [7])
    data = read(name, tmp_path)
    assert data.train["image"][:, 0, 0, 0].tolist() == [30, 10, 90]
    assert data.train["image"].shape == (3, 1, 28, 28)
    assert data.train_labels.tolist() == [3, 1, 9]
    assert data.test_labels.tolist() == [7]
    assert data.task.classes == 10
    assert data.name == name


def test_limits_and_sizes_hold_for_arrays_too(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", [3, 1, 9], [7])
    data = read("MNIST", tmp_path, limit=2, size=8)
    assert data.train["image"].shape == (2, 1, 8, 8)
    assert data.train_labels.tolist() == [3, 1]


def test_emnist_is_read_by_its_split(tmp_path):
    write_mnist(tmp_path / "EMNIST" / "raw", [3, 1], [2], middle="emnist-letters-")
    data = read("EMNIST:letters", tmp_path)
    assert data.train_labels.tolist() == [3, 1]
    assert data.test_labels.tolist() == [2]
    assert data.task.class_names[1:4] == ("a", "b", "c")


def test_emnist_without_a_split_is_told_them(tmp_path):
    assert "torchvision:EMNIST:balanced" in refusal("EMNIST", tmp_path)


def test_a_split_of_other_sets_is_refused(tmp_path):
    assert "only EMNIST has splits, not MNIST; use torchvision:MNIST" in refusal("MNIST:letters", tmp_path)


def test_sets_without_arrays_are_read_image_by_image(tmp_path):
    for half in ("train", "test"):
        for label, value in (("negative", (1, 2, 3)), ("positive", (4, 5, 6))):
            folder = tmp_path / "rendered-sst2" / half / label
            folder.mkdir(parents=True)
            Image.new("RGB", (5, 5), value).save(folder / "0.png")
    data = read("RenderedSST2", tmp_path)
    pairs = zip(data.train["image"][:, :, 0, 0].tolist(), data.train_labels.tolist(), strict=True)
    assert sorted(pairs) == [([1, 2, 3], 0), ([4, 5, 6], 1)]
    assert data.task.class_names == ("negative", "positive")


def test_a_corrupt_file_of_such_a_set_is_named_by_its_number(tmp_path):
    for half in ("train", "test"):
        for label in ("negative", "positive"):
            folder = tmp_path / "rendered-sst2" / half / label
            folder.mkdir(parents=True)
            file = io.BytesIO()
            Image.new("RGB", (5, 5)).save(file, "PNG")
            (folder / "0.png").write_bytes(file.getvalue() if label == "negative" else b"no image")
    assert "RenderedSST2 image 1 cannot be read" in refusal("RenderedSST2", tmp_path)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "SVHN"])
def test_a_set_that_is_not_there_and_may_not_be_fetched_names_root_and_download(tmp_path, name):
    message = refusal(name, tmp_path)
    assert f"data.root = {tmp_path}" in message
    assert "data.download: true" in message


def test_an_unknown_set_is_told_the_nearest(tmp_path):
    assert "did you mean FashionMNIST?" in refusal("FashionMnist", tmp_path)


def test_a_set_without_halves_is_refused(tmp_path):
    assert "FakeData does not come as a training and a test half" in refusal("FakeData", tmp_path)


def test_arrays_come_out_with_channels_first():
    last = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    first = np.stack([last[..., channel] for channel in range(3)], axis=1)
    assert np.array_equal(channels_first(last), first)
    assert np.array_equal(channels_first(first), first)
    assert np.array_equal(channels_first(last[..., 0]), first[:, :1])
