"""Payloads: kinds, bytes, and what may travel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.payload import EMPTY, KINDS, Payload, PayloadError

DTYPES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2, torch.int64: 8, torch.uint8: 1, torch.bool: 1}


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4),
    st.integers(0, 3),
)
def test_bytes_are_elements_times_width_and_eight_for_a_number(kind, tensors, numbers):
    contents = {f"t{i}": torch.zeros(shape, dtype=dtype) for i, (dtype, shape) in enumerate(tensors)}
    contents |= {f"n{i}": i for i in range(numbers)}
    expected = 8 * numbers
    for dtype, shape in tensors:
        elements = 1
        for side in shape:
            elements *= side
        expected += elements * DTYPES[dtype]
    assert Payload.of(**{kind: contents}).nbytes() == {kind: expected}


def test_an_empty_message_weighs_nothing():
    assert EMPTY.nbytes() == {}


def test_a_kind_is_a_word():
    assert Payload.of(masks={"x": torch.zeros(2)}).nbytes() == {"masks": 8}
    for name in ("", "two words", "<b>", 3):
        with pytest.raises(PayloadError, match=r"is no kind of payload; a kind is a word, as weights"):
            Payload({name: {}})


def test_anything_but_tensors_and_numbers_is_refused_by_its_place():
    with pytest.raises(PayloadError, match=r"weights\.note is a str"):
        Payload.of(weights={"note": "hello"})
