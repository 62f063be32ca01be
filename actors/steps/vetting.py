"""Validation of what a client sends before anybody uses it: one pass over its tensors, where the step ran."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from algorithms.core.payload import Payload, PayloadError, Value

_NOT_FINITE = re.compile(r" (holds NaN|is (nan|-?inf)$)")

_DIVERGED = "training that diverges ends so: a lower clients.lr, or clients.clip, may help"


class BadUpdate(PayloadError):
    """An update that cannot be used: of a network that diverged, or other tensors than it was given."""


def faults(answer: Payload, received: Payload) -> Iterator[str]:
    """Faults of what a client sends, in words that name each value as `kind.name`; none where it is right.

    Names are text, tensors are dense and of real numbers, and every number is finite and fits into 64 bits. A kind of
    which the client received tensors comes back with those names and no others, each tensor with the same shape and
    type; but one may come under a kind that was not received in its place, as a change of it, say.
    """
    yield from _name_faults(answer, received)
    for kind, contents in answer.parts.items():
        given = received.parts.get(kind, {})
        for name, value in cast(Mapping[Any, Value], contents).items():
            if not isinstance(name, str):
                yield f"{kind} has the name {name!r}, which is a {type(name).__name__} and no text"
            yield from _form_faults(f"{kind}.{name}", value, given.get(name))
            yield from _number_faults(f"{kind}.{name}", value)


def refuse_faults(answer: Payload, received: Payload) -> None:
    """Refuse what a client sends if `faults` finds anything.

    Raises:
        BadUpdate: naming the first five values, and how many more there are.
    """
    found = list(faults(answer, received))
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        hint = f"; {_DIVERGED}" if any(_NOT_FINITE.search(fault) for fault in found) else ""
        raise BadUpdate(f"the client sends what cannot be used: {'; '.join(found[:5])}{more}{hint}")


def _name_faults(answer: Payload, received: Payload) -> Iterator[str]:
    instead = {name for kind, contents in answer.parts.items() if kind not in received.parts for name in contents}
    for kind, contents in answer.parts.items():
        given = received.tensors(kind) if kind in received.parts else {}
        missing = [name for name in given if name not in contents and name not in instead]
        added = [name for name in contents if name not in received.parts[kind]] if given else []
        yield from (f"{kind}.{name} was received, but does not come back" for name in missing)
        yield from (f"{kind}.{name} comes back, but was not received" for name in added)


def _form_faults(name: str, value: Value, template: Value | None) -> Iterator[str]:
    if isinstance(value, Tensor) and not _can_travel(value):
        yield f"{name} is {_form(value)}, and only dense tensors of real numbers travel"
    if template is None or not isinstance(template, Tensor):
        return
    if not isinstance(value, Tensor):
        yield f"{name} is a number, but a tensor was received"
    elif (value.shape, value.dtype) != (template.shape, template.dtype):
        yield f"{name} is {_form(value)}, but {_form(template)} was received"


def _can_travel(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type != "meta"
    return dense and not (tensor.is_complex() or tensor.is_quantized)


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} "
    where = " without values" if tensor.device.type == "meta" else ""
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}{where}"


def _number_faults(name: str, value: Value) -> Iterator[str]:
    if not isinstance(value, Tensor):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield f"{name} is a number beyond 64 bits"
        elif not math.isfinite(value):
            yield f"{name} is {value}"
    elif value.is_floating_point() and _can_travel(value) and not _is_finite(value):
        wrong = int((~torch.isfinite(value)).sum())
        yield f"{name} holds NaN or infinity in {wrong} of {value.numel()} entries"


def _is_finite(value: Tensor) -> bool:
    # NaN and infinity survive a sum, which takes no memory; but the sum of large finite numbers may overflow.
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())
