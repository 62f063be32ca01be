"""States as trees: flattened, rebuilt, digested."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algorithms.core.records import digest, flatten, rebuild


@dataclass(frozen=True)
class Inner:
    weights: dict[str, Tensor]
    count: int


@dataclass(frozen=True)
class Outer:
    model: dict[str, Tensor]
    by_client: dict[int, Inner]
    history: tuple[float, ...]
    pair: tuple[int, str]
    rows: list[Tensor]
    best: Inner | None
    name: str


TENSORS = st.builds(
    lambda shape, dtype: (
        torch.arange(max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()].reshape(shape).to(dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]),
)
NAMED = st.dictionaries(st.text(min_size=1, max_size=5), TENSORS, max_size=3)
INNERS = st.builds(Inner, weights=NAMED, count=st.integers())
OUTERS = st.builds(
    Outer,
    model=NAMED,
    by_client=st.dictionaries(st.integers(0, 99), INNERS, max_size=3),
    history=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    rows=st.lists(TENSORS, max_size=2),
    best=st.none() | INNERS,
    name=st.text(),
)


KEYS = st.text(alphabet="/~$01at", max_size=4) | st.just("$tensor")
TREES = st.recursive(TENSORS, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


def leaves(value, path=()):
    """Tensors by the keys that lead to them; an empty dict as itself."""
    if isinstance(value, Tensor) or not value:
        return {path: value}
    return {found: leaf for key, part in value.items() for found, leaf in leaves(part, (*path, key)).items()}


def depth(value):
    return 1 + max(map(depth, value.values()), default=0) if isinstance(value, dict) else 0


def annotation(levels):
    return dict[str, annotation(levels - 1)] if levels else Any


@given(TREES)
def test_no_key_makes_two_values_one(value):
    """Keys of separators, escapes and the mark of a tensor: every tensor is kept, and found again under its keys."""
    tensors, tree = flatten(value)
    there, again = leaves(value), leaves(rebuild(annotation(depth(value)), json.loads(json.dumps(tree)), tensors))
    assert len(tensors) == sum(isinstance(leaf, Tensor) for leaf in there.values())
    assert again.keys() == there.keys()
    assert all(again[path] is leaf for path, leaf in there.items() if isinstance(leaf, Tensor))


def test_states_that_differ_by_a_separator_have_two_digests():
    one, two = torch.zeros(1), torch.ones(1)
    assert digest({"a/b": one, "a": {"b": two}}) != digest({"a/b": two, "a": {"b": two}})


@pytest.mark.parametrize(
    ("keys", "said"), [((1, "1"), "keys of type int and str"), ((True,), "type bool"), ((None,), "type NoneType")]
)
def test_keys_that_could_not_be_read_back_are_refused(keys, said):
    with pytest.raises(TypeError, match=f"model: .*{said} cannot be saved, only all str or all int"):
        flatten({"model": dict.fromkeys(keys, 0)})


@given(OUTERS)
def test_a_flattened_state_is_rebuilt_with_its_types_and_its_digest(value):
    tensors, tree = flatten(value)
    again = rebuild(Outer, tree, tensors)
    assert type(again) is Outer
    assert again.by_client.keys() == value.by_client.keys()
    assert again.history == value.history
    assert again.pair == value.pair
    assert digest(again) == digest(value)


def test_the_digest_moves_with_a_bit_a_dtype_a_shape_and_a_name():
    def of(**model):
        return digest(Inner(weights=model, count=1))

    base = of(w=torch.zeros(4))
    changed = [
        of(w=torch.tensor([0.0, 0.0, 0.0, -0.0])),
        of(w=torch.zeros(4, dtype=torch.float64)),
        of(w=torch.zeros(2, 2)),
        of(v=torch.zeros(4)),
    ]
    assert len({base, *changed}) == 5
    assert base == of(w=torch.zeros(4))


def test_the_digest_does_not_see_how_a_tensor_lies_in_memory():
    square = torch.arange(6.0).reshape(2, 3)
    assert digest(Inner({"w": square.T.contiguous().T}, 1)) == digest(Inner({"w": square}, 1))


def test_what_cannot_be_saved_is_named_by_its_path():
    with pytest.raises(TypeError, match="model/odd: a function cannot be saved"):
        flatten({"model": {"odd": flatten}})
