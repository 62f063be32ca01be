"""Partitions: the configuration's mistakes, what holds for every kind, files, table and picture."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from algorithms.core.seeds import Seed
from engine.partition import Partition, PartitionConfig, PartitionError, divide
from engine.partition.picture import draw, size_bars, table

LABELS = np.repeat(np.arange(4), [6, 5, 4, 3])
DOMAINS = ["photo", "sketch", "art"] * 6


def dealt(labels=LABELS, seed=0, columns=None, **fields):
    """A partition of 18 rows, or of other labels."""
    classes = int(labels.max()) + 1
    return divide(PartitionConfig(**fields), len(labels), labels, classes, columns or {"domain": DOMAINS}, Seed(seed))


def without_classes(examples=18, **fields):
    """A partition of examples that have no class."""
    return divide(PartitionConfig(**fields), examples, None, 0, {"domain": DOMAINS}, Seed(0))


def mistakes(**fields):
    """Key and message of everything that is wrong with a `partition` section."""
    with pytest.raises(ValidationError) as caught:
        PartitionConfig(**fields)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_all_mistakes_are_reported_together():
    found = mistakes(kind="dirichlet", alpha=0, sigma=0.1, seed=1)
    assert set(found) == {"alpha", "clients", "sigma", "seed"}
    assert "needs it: a number of clients" in found["clients"]
    assert "does not use it, only alpha and clients and column and min_examples" in found["sigma"]


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "0.1", None])
def test_alpha_is_a_number_above_zero(alpha):
    assert set(mistakes(kind="dirichlet", clients=2, alpha=alpha)) == {"alpha"}


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("iid", {"clients"}),
        ("dirichlet_balanced", {"alpha", "clients"}),
        ("classes", {"classes_per_client", "clients"}),
        ("quantity", {"alpha", "clients"}),
        ("power_law", {"exponent", "clients"}),
        ("log_normal", {"sigma", "clients"}),
        ("column", {"column"}),
        ("file", {"path"}),
    ],
)
def test_each_kind_says_what_it_needs(kind, needed):
    assert set(mistakes(kind=kind)) == needed


def test_an_unknown_kind_is_told_the_known_ones():
    assert "'dirichlet'" in mistakes(kind="dirichlett", clients=3)["kind"]


def test_a_resolved_configuration_reads_back_as_itself():
    config = PartitionConfig(kind="file", path="part.parquet")
    assert PartitionConfig(**config.model_dump(mode="json")) == config


ALPHAS = st.sampled_from([1e-9, 0.01, 0.1, 1.0, 100.0, 1e300])
COUNTS = st.integers(1, 12)
CONFIGS = st.one_of(
    st.builds(dict, kind=st.just("iid"), clients=COUNTS),
    st.builds(
        dict, kind=st.sampled_from(["dirichlet", "dirichlet_balanced", "quantity"]), clients=COUNTS, alpha=ALPHAS
    ),
    st.builds(
        dict,
        kind=st.sampled_from(["dirichlet", "dirichlet_balanced", "quantity"]),
        clients=COUNTS,
        alpha=ALPHAS,
        min_examples=st.integers(1, 5),
    ),
    st.builds(dict, kind=st.just("power_law"), clients=COUNTS, exponent=ALPHAS, min_examples=st.integers(1, 5)),
    st.builds(dict, kind=st.just("log_normal"), clients=COUNTS, sigma=ALPHAS, min_examples=st.integers(1, 5)),
    st.builds(dict, kind=st.just("classes"), clients=COUNTS, classes_per_client=st.integers(1, 4)),
    st.builds(dict, kind=st.just("column"), column=st.just("domain"), clients=st.none() | COUNTS),
)


def possible(labels, kind, clients=None, min_examples=1, classes_per_client=1, **_):
    """Whether nobody need be empty, or have less than asked."""
    if kind == "column":
        return (clients or 1) <= len(set(labels % 3))
    if kind == "classes":
        held, sizes = clients * classes_per_client, np.unique(labels, return_counts=True)[1]
        return classes_per_client <= len(sizes) <= held <= np.minimum(sizes, clients).sum()
    return clients * min_examples <= len(labels)


@settings(deadline=None, max_examples=200)
@given(CONFIGS, st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 99))
def test_every_kind_ends_with_every_row_at_one_client_and_no_client_empty(fields, labels, seed):
    labels = np.array(labels)
    columns = {"domain": labels % 3}
    if not possible(labels, **fields):
        with pytest.raises(PartitionError):
            dealt(labels, seed, columns, **fields)
        return
    partition = dealt(labels, seed, columns, **fields)
    assert partition.sizes.min() >= fields.get("min_examples", 1)
    assert np.sort(np.concatenate(partition.rows)).tolist() == list(range(len(labels)))
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in partition.rows)
    assert fields.get("clients") in (None, partition.clients)
    assert dealt(labels, seed, columns, **fields).fingerprint == partition.fingerprint


@settings(deadline=None)
@given(st.integers(1, 30), st.sampled_from(["dirichlet", "dirichlet_balanced", "quantity"]), ALPHAS)
def test_drawn_kinds_serve_as_many_clients_as_there_are_examples(clients, kind, alpha):
    labels = np.arange(30) % 3
    assert dealt(labels, kind=kind, clients=clients, alpha=alpha).clients == clients


@pytest.mark.parametrize(
    "fields", [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.1}, {"kind": "quantity", "alpha": 1.0}]
)
def test_more_clients_than_examples_are_refused_with_both_numbers(fields):
    with pytest.raises(PartitionError, match="18 training examples cannot be dealt to 19 clients") as caught:
        dealt(clients=19, **fields)
    assert caught.value.remedy == "use at most 18 clients"


def test_a_minimum_that_cannot_be_met_is_refused_with_the_numbers():
    with pytest.raises(PartitionError, match="4 clients cannot have 5 examples each, out of 18") as caught:
        dealt(kind="dirichlet", alpha=1.0, clients=4, min_examples=5)
    assert caught.value.remedy == "use at most 4"


@pytest.mark.parametrize("fields", [{"kind": "power_law", "exponent": 1.5}, {"kind": "log_normal", "sigma": 1.0}])
def test_laws_of_quantity_repeat_by_seed_and_mix_the_classes(fields):
    prints = [dealt(seed=seed, clients=4, **fields).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    partition = dealt(np.arange(2).repeat(500), clients=2, **fields)
    counts = partition.counts(np.arange(2).repeat(500), 2)
    assert np.abs(counts - partition.sizes[:, None] / 2).max() < 40


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "dirichlet", "alpha": 0.1},
        {"kind": "dirichlet_balanced", "alpha": 0.1},
        {"kind": "classes", "classes_per_client": 2},
    ],
)
def test_rows_without_a_class_are_not_dealt_by_class(fields):
    with pytest.raises(PartitionError) as caught:
        without_classes(clients=3, **fields)
    assert str(caught.value) == (
        f'partition.kind = "{fields["kind"]}": deals rows by their class, and these examples have none; '
        "name a column by partition.column to deal by its values, or use one of "
        "iid, quantity, power_law, log_normal, column, file"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "iid", "clients": 3},
        {"kind": "quantity", "alpha": 0.5, "clients": 3},
        {"kind": "power_law", "exponent": 1.0, "clients": 3},
        {"kind": "log_normal", "sigma": 1.0, "clients": 3},
        {"kind": "column", "column": "domain"},
    ],
)
def test_other_kinds_deal_rows_without_a_class_as_those_with_one(fields):
    assert without_classes(**fields).fingerprint == dealt(**fields).fingerprint


def test_a_file_deals_rows_without_a_class(tmp_path):
    path = written(tmp_path / "p.parquet", [5, 2, 9], [1, 0, 1])
    assert [rows.tolist() for rows in without_classes(kind="file", path=path).rows] == [[2], [5, 9]]


def test_another_seed_deals_otherwise():
    prints = {dealt(kind="iid", clients=3, seed=seed).fingerprint for seed in range(5)}
    assert len(prints) == 5


def test_iid_clients_differ_by_one_example_at_most():
    assert dealt(kind="iid", clients=4).sizes.tolist() == [5, 5, 4, 4]


def test_the_fingerprint_moves_when_a_row_moves():
    first = Partition((np.array([0, 1]), np.array([2, 3])), "iid")
    swapped = Partition((np.array([0, 2]), np.array([1, 3])), "iid")
    shifted = Partition((np.array([0, 1, 2]), np.array([3])), "iid")
    assert len({first.fingerprint, swapped.fingerprint, shifted.fingerprint}) == 3


def test_each_value_of_a_column_makes_a_client_in_the_values_order():
    partition = dealt(kind="column", column="domain")
    assert [DOMAINS[rows[0]] for rows in partition.rows] == ["art", "photo", "sketch"]
    assert partition.rows[1].tolist() == [0, 3, 6, 9, 12, 15]


def test_values_dealt_to_fewer_clients_stay_whole():
    partition = dealt(kind="column", column="domain", clients=2)
    assert sorted(partition.sizes.tolist()) == [6, 12]
    held = [{DOMAINS[row] for row in rows} for rows in partition.rows]
    assert not held[0] & held[1]


def test_fewer_values_than_clients_are_refused_with_both_numbers():
    with pytest.raises(PartitionError, match="column domain has 3 values, too few for 4 clients"):
        dealt(kind="column", column="domain", clients=4)


def test_a_column_that_is_not_there_is_told_those_that_are():
    with pytest.raises(PartitionError, match="the training data has domain; did you mean domain"):
        dealt(kind="column", column="domains")


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_row_without_a_value_is_named(nothing):
    values = np.array([*range(17), nothing], dtype=object)
    with pytest.raises(PartitionError, match="row 17 has no value"):
        dealt(kind="column", column="age", columns={"age": values})


def test_a_saved_partition_reads_back(tmp_path):
    partition = dealt(kind="dirichlet", alpha=0.01, clients=9)
    path = tmp_path / "partition.parquet"
    partition.save(path, "of the data")
    read = Partition.load(path, 18, "of the data")
    assert read.fingerprint == partition.fingerprint
    assert (read.kind, read.moved) == ("dirichlet", partition.moved)
    assert [entry.name for entry in tmp_path.iterdir()] == ["partition.parquet"]


def test_a_save_that_fails_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "partition.parquet"
    old = dealt(kind="iid", clients=2)
    old.save(path, "data")

    def breaks_off(table, target):
        target.write_bytes(b"PAR1 half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        dealt(kind="iid", clients=3).save(path, "data")
    assert Partition.load(path, 18).fingerprint == old.fingerprint


def written(path, rows, clients, **metadata):
    pq.write_table(pa.table({"row": rows, "client": clients}).replace_schema_metadata(metadata), path)
    return path


def test_a_file_may_leave_rows_out(tmp_path):
    partition = dealt(kind="file", path=written(tmp_path / "p.parquet", [5, 2, 9], [1, 0, 1]))
    assert [rows.tolist() for rows in partition.rows] == [[2], [5, 9]]
    assert partition.kind == "file"


@pytest.mark.parametrize(
    ("rows", "clients", "words"),
    [
        ([0, 18], [0, 1], "client 1 holds row 18, but the training data has 18 rows"),
        ([-1, 3], [0, 0], "client 0 holds row -1"),
        ([4, 7, 4], [0, 1, 2], "row 4 is dealt twice, to clients 0 and 2"),
        ([0, 1], [0, 2], "client numbers are 0, 2, so that client 1 would be empty"),
        ([0, 1], [-1, 0], "client numbers are -1, 0"),
        ([0.5], [0], "column row does not hold an integer everywhere"),
        ([0, 1], [0, None], "column client does not hold an integer everywhere"),
    ],
)
def test_a_file_that_deals_wrongly_is_refused(tmp_path, rows, clients, words):
    path = written(tmp_path / "p.parquet", rows, clients)
    with pytest.raises(PartitionError, match=words) as caught:
        dealt(kind="file", path=path)
    assert caught.value.value == str(path)


def test_a_file_without_rows_is_refused(tmp_path):
    path = written(tmp_path / "p.parquet", pa.array([], pa.int64()), pa.array([], pa.int64()))
    with pytest.raises(PartitionError, match="deals no row"):
        dealt(kind="file", path=path)


def test_a_file_that_is_missing_damaged_or_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(PartitionError, match="there is no file"):
        dealt(kind="file", path=path)
    path.write_bytes(b"PAR1")
    with pytest.raises(PartitionError, match="not a readable Parquet file"):
        dealt(kind="file", path=path)
    pq.write_table(pa.table({"index": [0], "client": [0]}), path)
    with pytest.raises(PartitionError, match="no column row, but index, client"):
        dealt(kind="file", path=path)


def test_a_file_whose_fingerprint_is_not_its_own_is_refused(tmp_path):
    path = written(tmp_path / "p.parquet", [0, 1], [0, 1], fingerprint="of other rows")
    with pytest.raises(PartitionError, match="not those its fingerprint was taken of"):
        Partition.load(path, 18)


def test_a_file_made_for_other_data_is_refused(tmp_path):
    path = tmp_path / "p.parquet"
    dealt(kind="iid", clients=2).save(path, "digits")
    with pytest.raises(PartitionError, match="made for data with the fingerprint digits, but this is mnist"):
        Partition.load(path, 18, "mnist")


PAIR = Partition((np.array([0, 1, 6]), np.array([11, 15, 16])), "file", moved=1)


def test_counts_are_client_by_class():
    assert PAIR.counts(LABELS, 5).tolist() == [[2, 1, 0, 0, 0], [0, 0, 1, 2, 0]]


def test_the_table_shows_counts_by_class():
    assert table(PAIR, LABELS, ["ant", "bee", "c", "d"]).splitlines() == [
        "client  examples  classes  ant  bee  c  d",
        "     0         3        2    2    1  .  .",
        "     1         3        2    .    .  1  2",
        "   all         6        4    2    1  1  2",
        "examples moved to clients that file had left short: 1",
    ]


def test_the_table_of_many_classes_keeps_to_three_columns():
    lines = table(PAIR, LABELS, [str(number) for number in range(13)]).splitlines()
    assert lines[0].split() == ["client", "examples", "classes"]


def test_the_table_without_classes_shows_sizes():
    assert table(PAIR, None, ()).splitlines() == [
        "client  examples",
        "     0         3",
        "     1         3",
        "   all         6",
        "examples moved to clients that file had left short: 1",
    ]


def test_the_picture_without_classes_has_a_bar_for_each_client_as_high_as_its_size(tmp_path):
    partition = without_classes(kind="power_law", exponent=1.0, clients=4)
    (axes,) = size_bars(partition.sizes, partition.kind).axes
    assert [bar.get_height() for bar in axes.patches] == partition.sizes.tolist()
    assert axes.get_title(loc="left") == "power_law: 4 clients, 18 examples"
    draw(partition, None, (), tmp_path / "sizes.png")
    with Image.open(tmp_path / "sizes.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(("clients", "classes"), [(10, 10), (100, 100)])
def test_the_picture_is_a_png_whose_cells_are_white_where_a_client_lacks_the_class(tmp_path, clients, classes):
    labels = np.arange(classes).repeat(200)
    everywhere, somewhere = (
        dealt(labels, kind=kind, clients=clients, **alpha)
        for kind, alpha in (("iid", {}), ("dirichlet", {"alpha": 0.001}))
    )
    shares = []
    for name, partition in (("iid.png", everywhere), ("skewed.png", somewhere)):
        draw(partition, labels, [f"class {number}" for number in range(classes)], tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            shares.append((np.asarray(image.convert("L")) == 255).mean())
    assert shares[1] >= shares[0] + 0.3


# --- Dealing by a column in the place of classes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "dirichlet", "alpha": 0.3},
        {"kind": "dirichlet_balanced", "alpha": 0.3},
        {"kind": "classes", "classes_per_client": 2},
    ],
)
def test_a_column_takes_the_place_of_classes_it_deals_as_they_would(fields):
    codes = np.array([sorted(set(DOMAINS)).index(name) for name in DOMAINS])
    by_class = divide(PartitionConfig(clients=3, **fields), 18, codes, 3, {}, Seed(0))
    by_column = without_classes(clients=3, column="domain", **fields)
    assert by_column.fingerprint == by_class.fingerprint
    assert sorted(np.concatenate(by_column.rows)) == list(range(18))


def test_a_column_is_dealt_by_where_rows_have_classes_too():
    fields = {"kind": "dirichlet", "alpha": 0.05, "clients": 3}
    rows = dealt(column="domain", **fields).rows
    assert [row.tolist() for row in rows] == [row.tolist() for row in without_classes(column="domain", **fields).rows]
    assert [row.tolist() for row in rows] != [row.tolist() for row in dealt(**fields).rows]


def test_a_small_alpha_over_a_column_leaves_most_rows_of_a_value_with_one_client():
    columns = {"domain": ["a", "b", "c"] * 100}
    config = PartitionConfig(kind="dirichlet", alpha=0.001, clients=3, column="domain")
    partition = divide(config, 300, None, 0, columns, Seed(1))
    for value in range(3):
        assert max(np.count_nonzero(rows % 3 == value) for rows in partition.rows) >= 98


def test_rows_without_classes_are_dealt_by_class_if_a_column_is_named_and_the_message_says_so():
    with pytest.raises(
        PartitionError, match=r"name a column by partition\.column to deal by its values, or use one of"
    ):
        without_classes(kind="dirichlet", alpha=0.3, clients=3)
    with pytest.raises(PartitionError, match=r'partition\.column = "domian": .*did you mean domain'):
        without_classes(kind="dirichlet", alpha=0.3, clients=3, column="domian")
