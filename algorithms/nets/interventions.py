"""Edits of a frozen language model's hidden states at a few places of a prompt.

LoReFT, Wu et al., "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592. At a place, the output h of
a decoder block becomes

    Phi(h) = h + R^T (W h + b - R h),    R (r x d) with orthonormal rows, W (r x d), b in R^r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.adapters import AdaptedModel


@dataclass(frozen=True)
class Places:
    """The places of a prompt that are edited.

    Attributes:
        first, last: how many at its beginning and at its end; of a short prompt at most half of it each.
        closing: tokens with which every prompt ends; what stands before their first end is the prompt.
    """

    first: int
    last: int
    closing: tuple[int, ...]

    def of(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """bool (B, T) twice: the first and the last places of prompts in ids (B, T); none of a text without the
        closing tokens.

        Args:
            mask: (B, T), 0 on padding, which may stand on the left; None where there is none there.
        """
        length = len(self.closing)
        if ids.shape[1] < length:
            return torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        closing = torch.tensor(self.closing, device=ids.device)
        here = (ids.unfold(1, length, 1) == closing).all(2)
        if mask is not None:
            here = here & (mask[:, : here.shape[1]] != 0)
        start = torch.zeros(len(ids), dtype=torch.int64, device=ids.device) if mask is None else mask.long().argmax(1)
        end = torch.where(here.any(1), here.long().argmax(1) + length, start)
        half = (end - start) // 2
        place = torch.arange(ids.shape[1], device=ids.device)
        start, end, half = start[:, None], end[:, None], half[:, None]
        first = (place >= start) & (place < start + half.clamp(max=self.first))
        last = (place >= end - half.clamp(max=self.last)) & (place < end)
        return first, last


class Intervention(nn.Module):
    """One edit: `R` and `W` (r, d), `b` (r,), float32; Phi is the identity at first.

    R is used with its rows made orthonormal, so that they are so after every step, whatever moved it.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        rows = orthonormal_rows(torch.randn(rank, size))
        self.R = nn.Parameter(rows)
        self.W = nn.Parameter(rows.clone())
        self.b = nn.Parameter(torch.zeros(rank))

    def forward(self, h: Tensor) -> Tensor:
        """Phi of h (..., d), in the type of h."""
        rows, inputs = orthonormal_rows(self.R), h.to(self.W.dtype)
        return h + (F.linear(inputs, self.W - rows, self.b) @ rows).to(h.dtype)


class Interventions(nn.Module):
    """Edits of blocks of a model: `BLOCK.first` and `BLOCK.last`, or `BLOCK.both` where they are tied."""

    def __init__(self, blocks: Sequence[int], size: int, rank: int, one_edit: bool) -> None:
        super().__init__()
        groups = ("both",) if one_edit else ("first", "last")
        for block in blocks:
            self.add_module(str(block), nn.ModuleDict({group: Intervention(size, rank) for group in groups}))

    def edit(self, block: str, h: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """The output h (B, T, d) of a block with its edits at places (B, T)."""
        groups: Any = self._modules[block]
        if "both" in groups:
            return torch.where((first | last)[..., None], groups["both"](h), h)
        h = torch.where(first[..., None], groups["first"](h), h)
        return torch.where(last[..., None], groups["last"](h), h)


def orthonormal_rows(a: Tensor) -> Tensor:
    """Rows (r, d), r at most d, that span what those of `a` do and are orthonormal; orthonormal ones stay."""
    q, upper = torch.linalg.qr(a.double().T)
    # The signs of R's diagonal are the library's choice.
    return (q * upper.diagonal().sign()).T.to(a.dtype).contiguous()


def blocks_of(net: AdaptedModel) -> nn.ModuleList:
    """The decoder blocks of the frozen model: its longest list of modules."""
    lists = [module for module in net.base.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


@contextmanager
def editing(net: AdaptedModel, interventions: Interventions, places: Places) -> Iterator[None]:
    """A block in which the frozen model, without adapters, has its hidden states edited.

    With a cache of keys and values, prompts are edited when they are read, and what is written after them never is.
    """
    now: dict[str, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        now.clear()
        if cache is None or cache.get_seq_length() == 0:
            now["places"] = places.of(kwargs["input_ids"], kwargs.get("attention_mask"))

    def edit(block: str, output: Any) -> Any:
        if not now:
            return output
        h = output if isinstance(output, Tensor) else output[0]
        changed = interventions.edit(block, h, *now["places"])
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    blocks = blocks_of(net)
    hooks = [net.base.register_forward_pre_hook(look, with_kwargs=True)]
    for name, _ in interventions.named_children():
        hooks.append(blocks[int(name)].register_forward_hook(lambda _, __, output, name=name: edit(name, output)))
    try:
        with net.alone():
            yield
    finally:
        for hook in hooks:
            hook.remove()


class EditedModel(nn.Module):
    """A frozen model with edits, which are the whole of its state dict."""

    def __init__(self, net: AdaptedModel, interventions: Interventions, places: Places) -> None:
        super().__init__()
        self._hidden = (net, places)
        self.interventions = interventions

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of token ids, int64 (B, T)."""
        net, places = self._hidden
        with editing(net, self.interventions, places):
            logits: Tensor = net(ids)
        return logits

    @property
    def base(self) -> Any:
        """The frozen model, a causal model of transformers."""
        return self._hidden[0].base

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the frozen model."""
        return self._hidden[0].tokenizer

    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A block in which `base` is about to answer these prompts."""
        net, places = self._hidden
        return editing(net, self.interventions, places)

    def train(self, mode: bool = True) -> EditedModel:
        self._hidden[0].train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EditedModel:
        self._hidden[0]._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
