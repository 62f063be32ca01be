"""Sub-models by width: index sets, averages of overlapping parts, and the scaler."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.seeds import torch_seeded
from algorithms.nets import Images, Signals, Tables, Texts, build
from algorithms.parts.submodels import PartialMean, SubModel, rescale, scaling, sub_model
from tests.support import weighted_mean

SHAPE = (1, 8, 8)
FORMS = {
    **dict.fromkeys(["mlp", "cnn2", "small_cnn", "resnet8", "resnet50"], Images(SHAPE)),
    **dict.fromkeys(["cnn1d", "resnet1d"], Signals((2, 24))),
    **dict.fromkeys(["fasttext", "textcnn"], Texts(20, 9)),
    "rows": Tables(3, (4, 9)),
}
NETS = ["mlp", "cnn2", "small_cnn", "resnet8", "cnn1d", "resnet1d", "fasttext", "textcnn", "rows"]
EVERY = pytest.mark.parametrize("name", NETS)
WINDOWS = pytest.mark.parametrize(("width", "offset"), [(0.5, 0), (0.25, 3), (1 / 16, 1000), (0.3, 31), (1.0, 7)])


def made(name, width=1.0, seed=1):
    """A network whose statistics of batch normalisation are not the initial ones."""
    with torch_seeded(seed):
        net = build("mlp" if name == "rows" else name, FORMS[name], 5, width)
        net(inputs(name, 8))
        return net


def inputs(name="mlp", count=3):
    """Draws from torch's global generator nothing."""
    if not isinstance(FORMS[name], Images):
        return FORMS[name].probe(count)
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@EVERY
@WINDOWS
def test_extract_and_put_back_change_nothing(name, width, offset):
    full, narrow = made(name), made(name, width)
    part = sub_model(full, narrow, inputs(name), offset)
    state = full.state_dict()
    extracted = part.extract(state)
    assert same(part.put_back(extracted, state), state)
    narrow.load_state_dict(extracted)


@EVERY
@WINDOWS
def test_what_is_extracted_computes_what_the_full_network_does_without_the_other_channels(name, width, offset):
    """The other channels are removed from the full network by zeros where layers read them."""
    full, narrow = made(name), made(name, width)
    part = sub_model(full, narrow, inputs(name), offset)
    narrow.load_state_dict(part.extract(full.state_dict()))
    without = copy.deepcopy(full)
    for entry, value in without.state_dict().items():
        if value.dim() > 1 and part.indices[entry][1].numel() < value.shape[1]:
            gone = torch.ones(value.shape[1], dtype=torch.bool)
            gone[part.indices[entry][1]] = False
            value[:, gone] = 0
    with torch.no_grad():
        expected, found = without.eval()(inputs(name)), narrow.eval()(inputs(name))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_bottlenecks_and_their_shortcuts_fit_too():
    full, narrow = made("resnet50"), made("resnet50", 0.125)
    narrow.load_state_dict(sub_model(full, narrow, inputs(), 5).extract(full.state_dict()))


def test_filters_of_several_windows_are_taken_whole():
    """Each filter has a feature for each of three windows: filter f is inputs 3f, 3f + 1, 3f + 2 of the head."""
    part = sub_model(made("textcnn"), made("textcnn", 1 / 16), inputs("textcnn"), offset=31)
    assert part.indices["body.convolutions.2.weight"][0].tolist() == [31, 0]
    assert part.indices["body.convolutions.2.weight"][1].tolist() == part.indices["body.embedding.weight"][1].tolist()
    assert part.indices["body.embedding.weight"][0].tolist() == list(range(20))
    assert part.indices["head.weight"][1].tolist() == [93, 94, 95, 0, 1, 2]


def test_a_window_goes_on_around_the_end():
    """64 hidden units, 16 of them from number 60 on."""
    part = sub_model(made("mlp"), made("mlp", 0.25), inputs(), offset=60)
    window = [60, 61, 62, 63, *range(12)]
    assert part.indices["body.1.weight"][0].tolist() == part.indices["body.1.bias"][0].tolist() == window
    assert part.indices["body.1.weight"][1].tolist() == list(range(64))
    assert part.indices["head.weight"][0].tolist() == list(range(5))
    assert part.indices["head.weight"][1].tolist() == window


def test_flattened_maps_are_read_channel_by_channel():
    """cnn2 on 8x8 flattens 64 maps of 2x2: channel c is inputs 4c .. 4c + 3 of the next layer."""
    part = sub_model(made("cnn2"), made("cnn2", 1 / 32), inputs(), offset=63)
    assert part.indices["body.3.weight"][0].tolist() == [63, 0]
    assert part.indices["body.7.weight"][1].tolist() == [252, 253, 254, 255, 0, 1, 2, 3]


@given(st.integers(0, 10_000))
def test_no_channel_is_taken_twice(offset):
    part = sub_model(FULL, NARROW, INPUTS, offset)
    for index in part.indices["head.weight"]:
        assert len(set(index.tolist())) == len(index)


FULL, NARROW, INPUTS = made("mlp"), made("mlp", 0.9), inputs()


def test_networks_are_left_without_hooks():
    full, narrow = made("mlp"), made("mlp", 0.5)
    sub_model(full, narrow, inputs(), 0)
    assert not any(module._forward_hooks for module in [*full.modules(), *narrow.modules()])


# --- Averages of parts ----------------------------------------------------------------------------------------------


def rows(*numbers):
    """A part that has these rows of a vector `w`, and the counter."""
    return SubModel({"w": (torch.tensor(numbers),), "counter": ()})


def part(*values, counter=1):
    return {"w": torch.tensor(values), "counter": torch.tensor(counter)}


BEFORE = {"w": torch.tensor([9.0, 9.0, 9.0, 9.0]), "counter": torch.tensor(0)}


def test_each_entry_is_the_mean_over_those_who_have_it():
    """Row 0: both, weights 1 and 3; row 1: the first alone; row 3: the second alone; row 2: nobody."""
    mean = PartialMean(BEFORE)
    mean.add(part(1.0, 2.0), rows(0, 1), 1)
    mean.add(part(5.0, 6.0, counter=7), rows(3, 0), 3)
    assert mean.result(BEFORE)["w"].tolist() == [(1 * 1 + 3 * 6) / 4, 2.0, 9.0, 5.0]
    assert mean.result(BEFORE)["counter"].item() == 7


def test_disjoint_windows_keep_their_own_clients_values():
    mean = PartialMean(BEFORE)
    mean.add(part(1.0, 2.0), rows(0, 1), 5)
    mean.add(part(3.0, 4.0), rows(2, 3), 1)
    assert mean.result(BEFORE)["w"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_only_the_named_rows_count():
    mean = PartialMean(BEFORE)
    mean.add(part(1.0, 2.0), rows(2, 3), 1, rows={"w": torch.tensor([1])})
    assert mean.result(BEFORE)["w"].tolist() == [9.0, 9.0, 9.0, 2.0]


def test_a_weight_of_zero_is_skipped_even_where_the_part_is_nan():
    mean = PartialMean(BEFORE)
    mean.add(part(float("nan"), 1.0), rows(0, 1), 0)
    assert same(mean.result(BEFORE), BEFORE)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        PartialMean(BEFORE).add(part(1.0, 2.0), rows(0, 1), weight)


def test_whole_parts_give_the_weighted_mean_to_the_bit():
    states = [made("small_cnn", seed=k).state_dict() for k in range(4)]
    whole = sub_model(made("small_cnn"), made("small_cnn"), inputs(), 3)
    mean = PartialMean(states[0])
    for weight, state in enumerate(states, start=7):
        mean.add(state, whole, weight)
    expected = weighted_mean([(state, weight) for weight, state in enumerate(states, start=7)], otherwise={})
    assert same(mean.result(states[0]), expected)


def test_an_entry_may_come_whole_from_one_and_in_part_from_others():
    """Row 2: the whole part alone; rows 0 and 1: both, weights 1 and 3; in any order."""
    for order in ((0, 1), (1, 0)):
        mean = PartialMean(BEFORE)
        parts = [(part(1.0, 2.0, 3.0, 4.0), rows(0, 1, 2, 3), 1), (part(5.0, 6.0), rows(0, 1), 3)]
        for number in order:
            mean.add(*parts[number])
        assert mean.result(BEFORE)["w"].tolist() == [(1 + 15) / 4, (2 + 18) / 4, 3.0, 4.0]


def test_the_parts_and_the_previous_values_are_not_written_into():
    mine = part(1.0, 2.0)
    mean = PartialMean(BEFORE)
    mean.add(mine, rows(0, 1), 2)
    mean.add(mine, rows(0, 1), 2)
    mean.result(BEFORE)
    assert mine["w"].tolist() == [1.0, 2.0]
    assert BEFORE["w"].tolist() == [9.0] * 4


# --- The scaler -----------------------------------------------------------------------------------------------------


def test_scaled_windows_agree_with_the_full_network_on_average():
    """Each of 64 hidden units lies in 16 of the 64 windows, and counts 4 times there, so they average to the whole."""
    full, narrow = made("mlp"), made("mlp", 0.25)
    logits = []
    for offset in range(64):
        narrow.load_state_dict(sub_model(full, narrow, inputs(), offset).extract(full.state_dict()))
        with scaling(narrow.train(), 0.25), torch.no_grad():
            logits.append(narrow(inputs()))
    assert torch.allclose(torch.stack(logits).mean(dim=0), full.eval()(inputs()).detach(), atol=1e-5)


def test_the_scaler_is_off_in_evaluation_and_gone_after_the_block():
    net = made("cnn2", 0.5)
    with torch.no_grad():
        plain = net.train()(inputs())
        with scaling(net, 0.5):
            assert not torch.equal(net(inputs()), plain)
            assert torch.equal(net.eval()(inputs()), plain)
        assert torch.equal(net.train()(inputs()), plain)


@pytest.mark.parametrize("name", ["mlp", "cnn2", "fasttext", "textcnn", "rows"])
def test_a_rescaled_network_answers_outside_as_it_did_inside_the_scaler(name):
    """None of them has batch normalisation, so train mode and eval mode differ by the scaler alone."""
    net, other = made(name, 0.5), made(name, 0.5)
    other.load_state_dict(rescale(net, net.state_dict(), 0.5))
    with scaling(net.train(), 0.5), torch.no_grad():
        inside = net(inputs(name))
    assert torch.allclose(other.eval()(inputs(name)), inside, atol=1e-6)
    assert torch.equal(other.head.weight, net.head.weight)
