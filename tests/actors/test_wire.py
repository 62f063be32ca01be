"""What travels is what was packed."""

import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.steps.orders import Failure, Outcome, Span
from actors.steps.wire import (
    ALIGNMENT,
    LARGE,
    pack,
    pack_memory,
    pack_outcome,
    pack_payload,
    unpack,
    unpack_memory,
    unpack_outcome,
    unpack_payload,
)
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw):
    dtype, shape, seed = draw(st.sampled_from(DTYPES)), draw(shapes), draw(st.integers(0, 2**31))
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


values = st.one_of(tensors(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans())
parts = st.dictionaries(
    st.sampled_from(["weights", "examples", "logits"]), st.dictionaries(st.text(max_size=4), values, max_size=5)
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


def travelled(packed):
    """Through pickle with buffers out of band and read-only, as Ray's object store hands them out."""
    buffers = []
    data = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[memoryview(bytes(b.raw())) for b in buffers])


@settings(deadline=None)
@given(parts, st.booleans())
def test_unpacking_gives_back_names_dtypes_shapes_bits_and_number_types(given_parts, private):
    back = unpack(travelled(pack(given_parts)), private=private)
    assert list(back) == list(given_parts)
    for part, contents in given_parts.items():
        assert list(back[part]) == list(contents)
        assert all(same(value, back[part][name]) for name, value in contents.items())


def test_nan_and_infinities_keep_their_bits():
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    back = unpack_payload(pack_payload(Payload.of(weights={"w": odd})), private=False).tensors("weights")["w"]
    assert back.numpy().tobytes() == odd.numpy().tobytes()


def test_all_tensors_leave_pickle_as_one_buffer():
    packed = pack({"weights": {"a": torch.ones(1000), "b": torch.zeros(1000, dtype=torch.int64)}})
    buffers = []
    stream = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert [b.raw().nbytes for b in buffers] == [4032 + 8000]  # 4000 rounded up to a multiple of 64
    assert len(stream) < 1000


def test_a_large_tensor_leaves_without_a_copy_as_a_buffer_of_its_own():
    large, small = torch.arange(LARGE // 8), torch.ones(3)
    packed = pack({"weights": {"large": large, "small": small}}, copy=False)
    assert [len(buffer) for buffer in packed.buffers] == [64, LARGE]
    assert packed.buffers[1].ctypes.data == large.data_ptr()
    for private in (False, True):
        back = unpack(travelled(packed), private=private)["weights"]
        assert same(large, back["large"])
        assert same(small, back["small"])
    assert len(pack({"weights": {"large": large}}).buffers) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(LARGE // 4).view(2, -1).t(),
        torch.ones(LARGE // 4, requires_grad=True),
        torch.ones(LARGE // 2, dtype=torch.bfloat16),
        torch.ones(LARGE, dtype=torch.bool),
        torch.zeros(LARGE // 8, dtype=torch.complex64).conj(),
    ],
    ids=["transposed", "part of a graph", "bfloat16", "bool", "conjugate"],
)
def test_a_large_tensor_of_any_kind_arrives_as_it_left(tensor):
    assert same(tensor, unpack(pack({"weights": {"w": tensor}}, copy=False), private=False)["weights"]["w"])


def test_tensors_start_at_multiples_of_the_alignment():
    packed = pack({"weights": {str(n): torch.ones(n) for n in (1, 17, 3)}})
    assert [place.offset % ALIGNMENT for place in packed.header["weights"].values()] == [0, 0, 0]


def test_views_of_read_only_memory_come_without_a_copy_and_without_a_warning():
    packed = travelled(pack({"weights": {"w": torch.arange(5)}}))
    assert not packed.buffers[0].flags.writeable
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            view = unpack(packed, private=False)["weights"]["w"]
    finally:
        torch.set_warn_always(False)
    assert view.data_ptr() == packed.buffers[0].ctypes.data


def test_a_private_copy_may_be_written_to():
    packed = travelled(pack({"weights": {"w": torch.zeros(3)}}))
    copy = unpack(packed, private=True)["weights"]["w"]
    copy.add_(1)
    assert unpack(packed, private=False)["weights"]["w"].tolist() == [0, 0, 0]
    assert copy.data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6.0).view(2, 3).t(), torch.ones(2, 2, requires_grad=True), torch.arange(10)[::3]],
    ids=["transposed", "part of a graph", "strided"],
)
def test_any_layout_packs_to_a_plain_tensor(tensor):
    back = unpack(pack({"weights": {"w": tensor}}), private=False)["weights"]["w"]
    assert back.tolist() == tensor.tolist()
    assert back.is_contiguous()
    assert not back.requires_grad


def test_packing_copies_so_that_later_changes_do_not_travel():
    tensor = torch.zeros(2)
    packed = pack({"weights": {"w": tensor}})
    tensor.fill_(9)
    assert unpack(packed, private=False)["weights"]["w"].tolist() == [0, 0]


def test_the_memory_travels_beside_the_outcome():
    payload, memory = Payload.of(examples={"n": 5}), {"position": 7, "m": torch.ones(2)}
    outcome = Outcome(4, payload, memory, {"loss": 0.5}, 0.1, span=Span("here 12", 1.0, 1.5))
    head, memory = pack_outcome(outcome)
    back = unpack_outcome(head)
    assert (back.client, back.payload.number("examples", "n"), back.memory) == (4, 5, None)
    assert (back.metrics, back.seconds, head.keeps) == ({"loss": 0.5}, 0.1, False)
    assert back.span == outcome.span
    assert unpack_memory(memory, private=True)["position"] == 7


def test_means_travel_with_the_last_of_their_group():
    mean = WeightedMean()
    mean.add({"w": torch.tensor([1.0, 2.0]), "seen": torch.tensor(4)}, 3)
    outcome = Outcome(4, None, None, {}, 0.1, bytes={"weights": 16}, group={"weights": mean, "none": WeightedMean()})
    head, _ = pack_outcome(outcome)
    back = unpack_outcome(pickle.loads(pickle.dumps(head)))
    assert back.payload is None
    assert back.nbytes() == {"weights": 16}
    assert {name: mean.weight for name, mean in back.group.items()} == {"weights": 3, "none": 0}
    result = back.group["weights"].result({})
    assert result["w"].tolist() == [1.0, 2.0]
    assert result["w"].dtype == torch.float32
    assert result["seen"] == 4


def test_a_step_that_keeps_its_memory_sends_none():
    head, memory = pack_outcome(Outcome(4, Payload.of(), None, {}, 0.1))
    assert head.keeps
    assert memory is None


def test_a_client_without_a_memory_has_an_empty_one():
    assert unpack_memory(None, private=True) == {}
    assert unpack_memory(pack_memory({}), private=True) == {}


def test_a_failure_travels_as_it_is():
    failure = Failure(1, "fedavg", "train", Seed(0), "ValueError: no", "Traceback ...")
    assert pack_outcome(failure) == (failure, None)


def test_parts_without_tensors_take_no_buffer():
    assert unpack(travelled(pack({"weights": {}, "examples": {"n": 1}})), private=True) == {
        "weights": {},
        "examples": {"n": 1},
    }
    assert pack({}).buffers == ()
