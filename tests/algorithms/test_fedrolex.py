"""FedRolex: windows that roll."""

import dataclasses
from collections import Counter

import torch

from algorithms.parts.submodels import part_of
from tests.algorithms.support_methods import Federation, method_of
from tests.algorithms.test_heterofl import travels as travels
from tests.support import play, tiny_plan, tiny_setup, tiny_shards

OFF = {"scaler": False, "mask": False}


def of_width(width, clients=3, name="fedrolex", **config):
    setup = tiny_setup(name, clients=clients, **config)
    return dataclasses.replace(setup, clients=tuple(dataclasses.replace(c, width=width) for c in setup.clients))


def test_full_widths_are_fedavg_to_the_bit_in_every_round():
    ours = play(tiny_setup("fedrolex", nets=("small_cnn",), norm="running", **OFF), rounds=3)
    assert ours.digests == play(tiny_setup("fedavg", nets=("small_cnn",), weights="uniform"), rounds=3).digests


def test_after_as_many_rounds_as_channels_each_has_had_its_turn_equally_often():
    """64 hidden units at width 0.3: ceil(19.2) = 20 of them in each of 64 rounds."""
    setup = of_width(0.3)
    method = method_of(setup)
    turns = Counter()
    for number in range(64):
        part = part_of(method.kit, "mlp", 0.3, method.offset(tiny_plan(setup, number, 64)))
        turns.update(part.indices["body.1.bias"][0].tolist())
    assert turns == dict.fromkeys(range(64), 20)


def test_the_first_round_is_heterofls_and_the_second_is_not():
    rolling, static = (play(of_width(0.25, name=name)) for name in ("fedrolex", "heterofl"))
    assert rolling.digests[0] == static.digests[0]
    assert rolling.digests[1] != static.digests[1]


def test_a_round_changes_its_windows_units_and_no_others():
    """Round 60, width 0.25 of 64 units: 60..63 and 0..11."""
    federation = Federation.inline(of_width(0.25), tiny_shards(3), rounds=64)
    before = federation.state.model
    after = federation.play(60).state.model
    window = {60, 61, 62, 63, *range(12)}
    for name, axis in (("body.1.weight", 1), ("body.1.bias", None), ("head.weight", 0)):
        changed = before[name] != after[name]
        changed = changed if axis is None else changed.any(dim=axis)
        assert set(changed.nonzero()[:, 0].tolist()) <= window, name
    assert (before["body.1.weight"] != after["body.1.weight"]).any()


def test_every_unit_is_trained_in_the_end_where_heterofl_leaves_most_alone():
    start = Federation.inline(of_width(0.25), tiny_shards(3)).state.model["head.weight"]
    rolling, static = (
        play(of_width(0.25, name=name), rounds=50).state.model["head.weight"] for name in ("fedrolex", "heterofl")
    )
    assert (rolling != start).any(dim=0).all()
    assert torch.equal(static[:, 16:], start[:, 16:])
