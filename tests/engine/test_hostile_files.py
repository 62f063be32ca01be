"""Files from somebody else: whatever they hold, they run nothing, and what is wrong with them is said by name."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import zeros

from algorithms.core.records import flatten
from engine.data import DataConfig, DataError, load
from engine.errors import ConfigError
from engine.partition import Partition, PartitionError
from engine.run.replay import ReplayError, read_failed_order
from engine.store.checkpoint import CheckpointError
from engine.store.checkpoint import load as load_checkpoint
from engine.store.folder import FolderError
from engine.store.folder import read as read_folder
from engine.store.sealed import seal
from tests.engine.runs import stored
from tests.engine.test_checkpoint import State
from tests.engine.test_data_files import GREY, refusal, write

FUZZ = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def damaged(path, place, junk):
    """The file's bytes with some of them replaced, at a place given as a share of its length."""
    whole = path.read_bytes()
    start = int(place * len(whole))
    path.write_bytes(whole[:start] + junk + whole[start + len(junk) :])


PLACES, JUNK = st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=16)


# --- Parquet ----------------------------------------------------------------------------------------------------------


@FUZZ
@example(place=0.388671875, junk=b"\x00")
@given(place=PLACES, junk=JUNK)
def test_damaged_data_are_read_or_refused_in_words(place, junk, tmp_path):
    write(tmp_path / "train.parquet", GREY, [0, 1, 2], domain=["x", "y", "x"])
    write(tmp_path / "test.parquet", GREY[:1], [2])
    damaged(tmp_path / "train.parquet", place, junk)
    try:
        load(DataConfig(source=f"parquet:{tmp_path}"))
    except DataError as error:
        said = str(error)
        assert any(word in said for word in ("train.parquet", "class", "column"))


@FUZZ
@given(place=PLACES, junk=JUNK)
def test_damaged_partitions_are_read_or_refused_in_words(place, junk, tmp_path):
    path = tmp_path / "part.parquet"
    Partition((np.array([0, 2]), np.array([1, 3])), "iid", 0).save(path, "data")
    damaged(path, place, junk)
    try:
        Partition.load(path, 4, "data")
    except PartitionError as error:
        said = str(error)
        assert "part.parquet" in said


@FUZZ
@example(name="rounds.parquet", place=0.2265625, junk=b"\x80")
@given(name=st.sampled_from(["rounds.parquet", "ledger.parquet", "seconds.parquet"]), place=PLACES, junk=JUNK)
def test_damaged_tables_of_a_run_are_read_or_refused_in_words(name, place, junk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "run"
    stored(folder)
    damaged(folder / name, place, junk)
    try:
        read_folder(folder)
    except FolderError as error:
        said = str(error)
        assert name in said


@pytest.fixture
def objects(tmp_path):
    """Values of a type that Ray Data adds to Arrow, whose reading unpickles them; and the mark they leave."""
    pytest.importorskip("ray.data", reason="Ray is not installed", exc_type=ImportError)
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    mark = tmp_path / "unpickled"
    return ArrowPythonObjectArray.from_objects([Bomb(mark)] * 3), mark


def test_pickles_in_the_place_of_images_are_refused_unread(objects, tmp_path):
    column, mark = objects
    image = pa.StructArray.from_arrays([column], ["bytes"])
    for half in ("train", "test"):
        pq.write_table(pa.table({"image": image, "label": [0, 1, 2]}), tmp_path / f"{half}.parquet")
    assert "not binary" in refusal(tmp_path)
    assert not mark.exists()
    # The trap is one: whoever reads such a value runs what it holds.
    column[0].as_py()
    assert mark.exists()


def test_pickles_in_another_column_are_passed_over_unread(objects, tmp_path):
    column, mark = objects
    write(tmp_path / "train.parquet", GREY, [0, 1, 2], speaker=column)
    write(tmp_path / "test.parquet", GREY[:1], [2])
    assert load(DataConfig(source=f"parquet:{tmp_path}")).columns == {}
    assert not mark.exists()


def test_a_class_name_that_cannot_be_printed_is_refused(tmp_path):
    for half in ("train", "test"):
        write(tmp_path / f"{half}.parquet", GREY, [0, 1, 2], class_names=("a", "\x1b[2Jb", "c"))
    assert r"the class name '\x1b[2Jb' has characters that cannot be printed" in refusal(tmp_path)


@pytest.mark.parametrize("metadata", [{b"kind": b"\xff\xfe"}, {b"moved": b"many"}, {b"kind": b"$\\frac$"}])
def test_metadata_of_a_partition_that_nobody_wrote_so_are_refused(tmp_path, metadata):
    path = tmp_path / "part.parquet"
    table = pa.table({"row": [0, 1], "client": [0, 1]}).replace_schema_metadata({b"data": b"d", **metadata})
    pq.write_table(table, path)
    with pytest.raises(PartitionError, match="its metadata says kind = "):
        Partition.load(path, 2, "d")


# --- CIFAR ------------------------------------------------------------------------------------------------------------


class Published(pickle.Pickler):
    """As Python 2 wrote the published files: the bytes of an array are text."""

    def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
            return NotImplemented
        make, (kind, shape, code), _ = value.__reduce__()
        state = (1, value.shape, value.dtype, False, value.tobytes().decode("latin1"))
        return make, (kind, shape, code.decode()), state


def published(entry):
    """A file's bytes."""
    file = io.BytesIO()
    Published(file, protocol=2).dump(entry)
    return file.getvalue()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Writes a folder of CIFAR-10 with the given entry in each batch; its checksums are taken for right."""
    from algorithms.nets.vision import torchvision

    monkeypatch.setattr(torchvision().datasets.CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    def written(entry, names=("cat", "dog")):
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            (folder / name).write_bytes(published(entry))
        (folder / "batches.meta").write_bytes(published({"label_names": list(names)}))
        return tmp_path

    return written


def test_cifar_is_read_as_it_is_published(cifar):
    pixels = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    data = load(DataConfig(source="torchvision:CIFAR10", root=cifar({"data": pixels, "labels": [1, 0]})))
    assert data.train["image"].shape == (10, 3, 32, 32)
    assert np.array_equal(data.test["image"], pixels.reshape(2, 3, 32, 32))
    assert data.test_labels.tolist() == [1, 0]
    assert data.task.class_names == ("cat", "dog")


def test_a_cifar_file_that_names_code_is_refused_unrun_even_with_the_right_checksum(cifar, tmp_path):
    mark = tmp_path / "unpickled"
    root = cifar({"data": Bomb(mark), "labels": [0]})
    with pytest.raises(DataError, match=r"it names posix\.mkdir, and only numpy's arrays are read"):
        load(DataConfig(source="torchvision:CIFAR10", root=root))
    assert not mark.exists()


# --- Checkpoints and failed steps -------------------------------------------------------------------------------------


LEAVES = st.none() | st.integers() | st.text(max_size=5)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6)


@FUZZ
@given(tree=TREES)
def test_a_checkpoint_of_any_other_content_is_refused_in_words(tree, tmp_path_factory):
    path = seal(tmp_path_factory.mktemp("hostile"), "000001", tree, {"a": zeros(1)})
    with pytest.raises(CheckpointError, match=r"does not hold a tests\.engine\.test_checkpoint\.State as this version"):
        load_checkpoint(path, State)


@pytest.mark.parametrize("kind", ["../code", "raw data"])
def test_a_failed_step_with_contents_of_no_kind_is_refused(tmp_path, kind):
    tensors, tree = flatten({"received": {"parts": {kind: {"x": zeros(1)}}}, "memory": {}})
    order = {"step": "train", "client": 0, "seed": {"run": 0}, **tree}
    path = tmp_path / "failures" / "round-0-train-client-0.safetensors"
    path.parent.mkdir()
    save_file(tensors, path, metadata={"tessera": json.dumps({"order": order})})
    with pytest.raises(ReplayError, match=f"{kind}' is no kind of payload"):
        read_failed_order(tmp_path, 0, "train", 0)


@FUZZ
@given(junk=st.binary(max_size=60))
def test_a_configuration_of_any_bytes_is_read_or_refused_in_words(junk, tmp_path):
    from engine.config import load as load_config

    path = tmp_path / "config.yaml"
    path.write_bytes(junk)
    with pytest.raises(ConfigError):
        load_config(str(path))
