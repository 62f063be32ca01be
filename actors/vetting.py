"""What a client sends is looked at before anybody uses it: one pass over its tensors, where the step was performed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from algorithms.core.payload import Payload, PayloadError, Value


class BadUpdate(PayloadError):
    """What a client sends cannot be used: a network that diverged, or tensors of another form than it was given."""


def faults(sent: Payload, received: Payload) -> Iterator[str]:
    """What is wrong with what a client sends, in words that name each value as `kind.name`; nothing where it is right.

    Every number must be finite. A tensor that the client received under the same kind and name must come back with the
    same shape and type.
    """
    for kind, contents in sent.parts.items():
        given = received.parts.get(kind, {})
        for name, value in contents.items():
            yield from _of_form(f"{kind}.{name}", value, given.get(name))
            yield from _of_numbers(f"{kind}.{name}", value)


def refuse_faults(sent: Payload, received: Payload) -> None:
    """Hold what a client sends to `faults`.

    Raises:
        BadUpdate: naming the first five values, and how many more there are.
    """
    found = list(faults(sent, received))
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise BadUpdate(f"the client sends what cannot be used: {'; '.join(found[:5])}{more}")


def _of_form(name: str, value: Value, given: Value | None) -> Iterator[str]:
    if given is None or not isinstance(given, Tensor):
        return
    if not isinstance(value, Tensor):
        yield f"{name} is a number, but a tensor was received"
    elif (value.shape, value.dtype) != (given.shape, given.dtype):
        yield f"{name} is {_form(value)}, but {_form(given)} was received"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _of_numbers(name: str, value: Value) -> Iterator[str]:
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            yield f"{name} is {value}"
    elif value.is_floating_point() and not _finite(value):
        wrong = int((~torch.isfinite(value)).sum())
        yield f"{name} holds NaN or infinity in {wrong} of {value.numel()} entries"


def _finite(value: Tensor) -> bool:
    # NaN and infinity survive a sum, which takes no memory; but the sum of large finite numbers may overflow.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
