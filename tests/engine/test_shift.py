"""Shifts by client: what changes in whose rows, by how much, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.core.seeds import Seed
from engine.config.loading import resolve
from engine.data import load
from engine.errors import ConfigError
from engine.partition import ShiftConfig, shift_columns
from engine.partition.shift import channel_gains, rotate
from engine.planning.federation import Federation

ROWS = [np.array([0, 3, 4]), np.array([1, 2, 7]), np.array([5])]
"""Three clients of eight rows; nobody holds row 6."""


def pictures(count=8, channels=3, height=5, width=5):
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def examples():
    """Eight rows of everything, none of which may be written to."""
    random = np.random.default_rng(1)
    columns = {
        "image": pictures(),
        "signal": random.standard_normal((8, 2, 4)).astype(np.float32),
        "tokens": random.integers(0, 9, (8, 6)),
        "label": np.arange(8) % 4,
    }
    for values in columns.values():
        values.setflags(write=False)
    return columns


def after(rows=ROWS, columns=None, seed=0, target="label", classes=4, test=False, **shift):
    columns = examples() if columns is None else columns
    return shift_columns(columns, rows, ShiftConfig(**shift), Seed(seed), target=target, classes=classes, test=test)


def test_no_shift_hands_back_the_arrays_themselves():
    columns = examples()
    found = after(columns=columns)
    assert all(found[name] is columns[name] for name in columns)


@pytest.mark.parametrize(
    ("shift", "changed"),
    [
        ({"noise": 0.3}, {"image", "signal"}),
        ({"rotation": 30.0}, {"image"}),
        ({"colour": 0.5}, {"image"}),
        ({"labels": 1.0}, {"label"}),
    ],
)
def test_each_shift_changes_its_columns_alone_in_rows_that_a_client_holds(shift, changed):
    columns = examples()
    before = {name: values.copy() for name, values in columns.items()}
    found = after(columns=columns, **shift)
    assert {name for name in columns if not np.array_equal(found[name], columns[name])} == changed
    for name, values in columns.items():
        assert np.array_equal(values, before[name])
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name][6], values[6])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([{"noise": 0.3}, {"rotation": 50.0}, {"colour": 0.7}, {"labels": 1.0}]), st.integers(0, 2))
def test_a_clients_rows_depend_on_no_other_clients_rows(shift, client):
    """The others hold nothing, or other rows."""
    alone = [rows if k == client else rows[:0] for k, rows in enumerate(ROWS)]
    columns = {name: values for name, values in examples().items() if name != "signal"}
    own = ROWS[client]
    with_others, without = after(columns=columns, **shift), after(alone, columns, **shift)
    assert all(np.array_equal(with_others[name][own], without[name][own]) for name in columns)


def test_another_seed_draws_other_noise_gains_and_labels_and_the_same_seed_the_same():
    for shift in ({"noise": 0.3}, {"colour": 0.7}, {"labels": 1.0}):
        first, again, other = (after(seed=seed, **shift) for seed in (0, 0, 1))
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not all(np.array_equal(first[name], other[name]) for name in first)


# Rotation


def test_client_k_is_turned_k_times_and_by_right_angles_exactly():
    images = pictures()
    found = after(columns={"image": images, "label": np.arange(8)}, rotation=90.0)["image"]
    for client, rows in enumerate(ROWS):
        assert np.array_equal(found[rows], np.rot90(images[rows], client, axes=(2, 3)))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4, 5])
def test_right_angles_are_numpys_own(quarters):
    images = pictures(height=6, width=6)
    assert np.array_equal(rotate(images, 90.0 * quarters), np.rot90(images, quarters, axes=(2, 3)))


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_interpolation_meets_right_angles_where_the_angle_comes_close_to_them(side, quarters):
    images = pictures(height=side, width=side)
    near = rotate(images, 90.0 * quarters + 1e-6)
    assert np.array_equal(near, np.rot90(images, quarters, axes=(2, 3)))


def test_half_a_quarter_moves_the_arm_of_a_cross_into_the_corner_and_leaves_the_centre():
    """The pixel one up and one right comes from sqrt(2) right of the centre, the corner from sqrt(8) = 2.83, where
    0.17 of the last pixel and 0.83 of the black outside are mixed."""
    image = np.zeros((1, 1, 5, 5), np.uint8)
    image[0, 0, 2, 2:] = 200
    found = rotate(image, 45.0)[0, 0]
    assert [found[2, 2], found[1, 3], found[0, 4]] == [200, 200, round(200 * (3 - 8**0.5))]
    assert found[3, 1] == found[3, 3] == found[1, 1] == 0


def test_images_that_are_not_square_keep_their_shape():
    images = pictures(height=3, width=7)
    assert rotate(images, 90.0).shape == images.shape
    assert np.array_equal(rotate(images, 180.0), images[:, :, ::-1, ::-1])


# Colour


def test_each_channel_is_multiplied_by_its_clients_gain():
    images = np.full((8, 3, 2, 2), 100, np.uint8)
    found = after(columns={"image": images}, target=None, colour=0.5)["image"]
    for client, rows in enumerate(ROWS):
        expected = np.rint(100 * channel_gains(0.5, client, 3, Seed(0)))
        assert (found[rows] == expected[:, None, None]).all()
        assert ((expected >= 50) & (expected <= 150)).all()
    assert len({tuple(found[rows[0], :, 0, 0]) for rows in ROWS}) == 3


def test_brightness_ends_at_white():
    images = np.full((8, 3, 2, 2), 255, np.uint8)
    found = after(columns={"image": images}, target=None, colour=1.0)["image"]
    expected = np.minimum(255, 255 * np.stack([channel_gains(1.0, client, 3, Seed(0)) for client in range(3)]))
    assert np.abs(found[[0, 1, 5], :, 0, 0] - expected).max() <= 0.5
    assert (expected == 255).any()


# Noise


def test_noise_rises_linearly_over_the_clients():
    """Mid-grey images keep clear of both ends: 127 is six deviations of 20. A deviation estimated from 12,800 values
    has one of its own of 0.6 %."""
    images = np.full((4, 1, 80, 160), 128, np.uint8)
    found = after([np.array([k]) for k in range(4)], {"image": images}, target=None, noise=20 / 255)["image"]
    for client in range(4):
        errors = found[client].astype(float) - 128
        assert errors.std() == pytest.approx(5 * (client + 1), rel=0.04)
        assert abs(errors.mean()) < 0.5


def test_noise_on_numbers_is_in_deviations_of_each_feature_and_leaves_what_is_missing():
    numbers = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32) * np.float32([1, 100, 0])
    numbers[5, 0] = np.nan
    rows = [np.arange(2000), np.arange(2000, 4000)]
    errors = after(rows, {"x": numbers}, target=None, noise=0.5)["x"] - numbers
    assert np.isnan(errors[5, 0])
    for half, strength in ((slice(6, 2000), 0.25), (slice(2000, 4000), 0.5)):
        assert errors[half].std(axis=0) == pytest.approx(np.array([strength, 100 * strength, 0]), rel=0.08)


def test_columns_get_noise_of_their_own():
    twin = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)
    found = after(columns={"left": twin, "right": twin.copy()}, target=None, noise=1.0)
    assert not np.allclose(found["left"][0], found["right"][0])


def test_the_target_of_a_regression_gets_no_noise():
    target = np.arange(8, dtype=np.float32)
    found = after(columns={"x": target + 1, "y": target}, target="y", classes=0, noise=1.0)
    assert found["y"] is target
    assert not np.array_equal(found["x"], target + 1)


def test_noise_is_the_same_whatever_is_changed_at_a_time(monkeypatch):
    whole = after(noise=0.5)
    monkeypatch.setattr("engine.partition.shift._BLOCK", 1)
    by_row = after(noise=0.5)
    assert all(np.array_equal(whole[name], by_row[name]) for name in whole)


# Labels


@settings(deadline=None)
@given(st.floats(0.01, 1), st.integers(2, 5), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_the_share_of_wrong_labels_is_exact(share, classes, sizes):
    labels = np.random.default_rng(0).integers(0, classes, sum(sizes))
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = after(rows, {"label": labels}, classes=classes, labels=share)["label"]
    for client, own in enumerate(rows):
        wrong = np.count_nonzero(found[own] != labels[own])
        assert wrong == round(share * (client + 1) / len(sizes) * len(own))
    assert found.min(initial=0) >= 0
    assert found.max(initial=0) < classes


def test_every_other_class_takes_its_part_of_the_wrong_labels():
    """Of 3,000 wrong labels each of three classes takes 1,000, with a deviation of 26."""
    found = after([np.arange(3000)], {"label": np.full(3000, 2)}, labels=1.0)["label"]
    counts = np.bincount(found, minlength=4)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3]] - 1000).max() < 150


# Clients' own test rows


def test_test_rows_have_the_angles_and_gains_of_training_and_true_labels():
    columns = examples()
    for shift in ({"rotation": 40.0}, {"colour": 0.6}):
        assert np.array_equal(after(test=True, **shift)["image"], after(**shift)["image"])
    assert after(columns=columns, test=True, labels=1.0)["label"] is columns["label"]
    assert not np.array_equal(after(test=True, noise=0.3)["image"], after(noise=0.3)["image"])


# What is refused


def refused(**arguments):
    with pytest.raises(ConfigError) as caught:
        after(**arguments)
    return [str(problem) for problem in caught.value.problems]


def test_shifts_without_anything_to_shift_are_refused_together():
    tokens = {"tokens": np.zeros((8, 6), np.int64)}
    assert refused(columns=tokens, target=None, classes=0, noise=0.1, rotation=90.0, colour=0.2, labels=0.3) == [
        "shift.rotation = 90.0: changes images, and these examples have none; leave it out, or set it to 0",
        "shift.colour = 0.2: changes images, and these examples have none; leave it out, or set it to 0",
        "shift.noise = 0.1: changes images and numbers, and these examples have neither; leave it out, or set it to 0",
        "shift.labels = 0.3: puts other classes in the place of true ones, and there are 0 classes; "
        "leave it out, or set it to 0",
    ]


def test_one_class_alone_has_no_wrong_labels():
    (problem,) = refused(classes=1, labels=0.3)
    assert "there are 1 classes" in problem


def test_a_row_of_two_clients_is_refused():
    (problem,) = refused(rows=[np.array([0, 1]), np.array([1, 2])], noise=0.5)
    assert problem.startswith('shift = {"noise": 0.5}: needs a partition that deals no row to two clients')
    after([np.array([0, 1]), np.array([1, 2])])


@pytest.mark.parametrize(
    "fields", [{"noise": -0.1}, {"rotation": 360.0}, {"colour": 1.1}, {"labels": 1.1}, {"hue": 0.1}]
)
def test_strengths_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        ShiftConfig(**fields)


# In a federation


def gathered(method="fedavg", **shift):
    tree = {
        "method": {"name": method},
        "data": {"source": "digits"},
        "partition": {"kind": "dirichlet", "alpha": 0.3, "clients": 4},
        "shift": shift,
        "clients": {"net": "mlp", "steps": 1, "batch": 4, "lr": 0.1},
        "rounds": 1,
    }
    return Federation.gather(resolve(tree))


def test_clients_hold_shifted_examples_and_the_test_set_stays_as_it_was():
    plain, rotated = gathered(), gathered(rotation=90.0)
    assert rotated.partition.fingerprint == plain.partition.fingerprint
    assert rotated.dataset.fingerprint == plain.dataset.fingerprint
    assert np.array_equal(rotated.dataset.test["image"], plain.dataset.test["image"])
    for client, rows in enumerate(plain.partition.rows):
        expected = np.rot90(plain.shards.columns["image"][rows], client, axes=(2, 3))
        assert np.array_equal(rotated.shards.columns["image"][rows], expected)


def test_counts_by_class_are_of_the_labels_that_clients_hold():
    federation = gathered(labels=1.0)
    for client, rows in enumerate(federation.partition.rows):
        own = federation.shards(client).own_labels.numpy()
        true = load(federation.config.data).train_labels[rows]
        assert np.count_nonzero(own != true) == round((client + 1) / 4 * len(rows))


def test_clients_with_tests_of_their_own_meet_their_own_shift_there():
    plain, rotated = gathered("fedbn"), gathered("fedbn", rotation=90.0, labels=1.0)
    for client in range(4):
        before, now = plain.shards.test(client), rotated.shards.test(client)
        assert now.rows.tolist() == before.rows.tolist()
        assert now.own_labels.tolist() == before.own_labels.tolist()
        expected = np.rot90(before.columns["image"][before.rows].numpy(), client, axes=(2, 3))
        assert np.array_equal(now.columns["image"][now.rows].numpy(), expected)
    assert np.array_equal(rotated.dataset.test["image"], plain.dataset.test["image"])
