"""Low-rank adapters on a frozen language model: all that is learnt, kept by clients, and sent.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. For an adapted matrix W0
(d_out x d_in),

    h_out = W0 h + s B A h,    A (r x d_in), B (d_out x r), s = alpha / r,

A Kaiming-uniform with a = sqrt 5 and B = 0 at the start, as peft has them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.errors import NetworkError
from algorithms.nets.language_models import peft_package

Weight: TypeAlias = float | Tensor
"""The weight of a branch in the sum: a number, or one for each example, (B, 1, 1)."""


@dataclass(frozen=True)
class Adapter:
    """The form of a low-rank adapter.

    Attributes:
        rank: r, at least 1.
        alpha: of the scale alpha / r.
        targets: last parts of the names of the matrices that are adapted; () for those that are usual for the model's
            family: the projections of queries and values.
        dropout: share of a matrix's inputs that training leaves out, in [0, 1).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """s = alpha / r, whatever fraction of the rank a client holds."""
        return self.alpha / self.rank

    def rank_of(self, width: float) -> int:
        """The rank of a client that holds a fraction in (0, 1] of it: at least 1."""
        return max(1, round(self.rank * width))


class LowRank(nn.Module):
    """One matrix's adapter: `lora_A` (r, d_in) and `lora_B` (d_out, r), float32."""

    def __init__(self, d_in: int, d_out: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))
        self.dropout = dropout
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, h: Tensor) -> Tensor:
        """B A h, of h (..., d_in), in the type of h."""
        inputs = F.dropout(h, self.dropout, self.training) if self.dropout else h
        return F.linear(F.linear(inputs.to(self.lora_A.dtype), self.lora_A), self.lora_B).to(h.dtype)


Sizes: TypeAlias = Mapping[str, tuple[int, int]]
"""(d_in, d_out) of each adapted matrix, by its name in the model."""


class Branch(nn.Module):
    """A set of adapters for the matrices of a model: `MATRIX.lora_A` and `MATRIX.lora_B` by the matrices' names.

    Fresh ones are drawn from torch's global generator, matrix by matrix in the model's order.
    """

    def __init__(self, sizes: Sizes, adapter: Adapter, rank: int) -> None:
        super().__init__()
        self.adapter, self.rank = adapter, rank
        self._parts: dict[str, LowRank] = {}
        for name, (d_in, d_out) in sizes.items():
            self._parts[name] = LowRank(d_in, d_out, rank, adapter.dropout)
            _put(self, name, self._parts[name])

    def change(self, matrix: str, h: Tensor) -> Tensor:
        """s B A h for one of the matrices, of h (..., d_in): (..., d_out)."""
        return self._parts[matrix](h) * self.adapter.scale

    def matrices(self) -> Sequence[str]:
        """Names of the adapted matrices, in the model's order."""
        return tuple(self._parts)


def _put(root: nn.Module, name: str, part: nn.Module) -> None:
    """Place a module below another one under a dotted name."""
    *way, last = name.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root._modules[step]  # type: ignore[assignment]
    root.add_module(last, part)


class Change(Protocol):
    """Whatever adds to the outputs of adapted matrices."""

    def change(self, matrix: str, h: Tensor) -> Tensor:
        """The addition for one of the matrices, of its inputs h (..., d_in): (..., d_out)."""
        ...


class DenseChange(nn.Module):
    """A whole matrix added to each adapted one, frozen: `MATRIX.dense`, (d_out, d_in), by the matrices' names."""

    def __init__(self, matrices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._parts: dict[str, nn.Module] = {}
        for name, value in matrices.items():
            self._parts[name] = nn.Module()
            self._parts[name].register_parameter("dense", nn.Parameter(value, requires_grad=False))
            _put(self, name, self._parts[name])

    def change(self, matrix: str, h: Tensor) -> Tensor:
        """Its matrix times h, in the type of h."""
        dense: Any = self._parts[matrix].dense
        return F.linear(h.to(dense.dtype), dense).to(h.dtype)


@dataclass(frozen=True)
class _Beside:
    """A further branch in the forward pass."""

    branch: Change
    weight: Weight
    passes_gradient: bool


class AdaptedModel(Branch):
    """A causal language model whose weights are frozen, with one branch of adapters, which are its only parameters and
    the whole of its state dict.

    It takes token ids, int64 (B, T), and gives logits, float32 (B, T, vocabulary). What stands after a text's end
    changes nothing before it.

    The model itself is no submodule: its weights belong to all adapted models of a process.
    """

    def __init__(self, base: nn.Module, tokenizer: Any, adapter: Adapter, width: float = 1.0) -> None:
        """`base` is this object's own tree of modules; see `algorithms.nets.language_models.shared_copy`."""
        found = _matrices(base, adapter.targets)
        sizes = {name: _size(module) for name, module in found.items()}
        _check_rank(adapter, sizes)
        super().__init__(sizes, adapter, adapter.rank_of(width))
        self._hidden = (base, tokenizer)
        self._own_weight: Weight = 1.0
        self._beside: tuple[_Beside, ...] = ()
        self.sizes = sizes
        for name, module in found.items():
            module.register_forward_hook(partial(self._hook, name))

    @property
    def base(self) -> Any:
        """The frozen model, a causal model of transformers."""
        return self._hidden[0]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the frozen model."""
        return self._hidden[1]

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.base(input_ids=ids, use_cache=False).logits
        return logits.float()  # losses of 16 bits have three digits

    def _hook(self, matrix: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        h = inputs[0]
        # A weight of 0 leaves a branch out, so that it draws no dropout.
        if not _is_zero(self._own_weight):
            output = output + _times(self.change(matrix, h), self._own_weight)
        for beside in self._beside:
            if not _is_zero(beside.weight):
                change = _times(beside.branch.change(matrix, h), beside.weight)
                output = output + (change if beside.passes_gradient else change.detach())
        return output

    def new_branch(self, rank: int | None = None) -> Branch:
        """Fresh adapters for the same matrices, of this model's rank or another, with a state dict of the same names;
        on the same device."""
        branch = Branch(self.sizes, self.adapter, rank or self.rank)
        return branch.to(next(self.parameters()).device)

    @contextmanager
    def beside(
        self, branch: Change, weight: Weight = 1.0, own: Weight = 1.0, passes_gradient: bool = True
    ) -> Iterator[None]:
        """A block in which another branch adds to every adapted matrix, beside this model's own.

        Args:
            weight: of the other branch; 0 leaves it out.
            own: of this model's own branch; 0 leaves it out, so that with `weight` 0 the frozen model speaks alone.
            passes_gradient: whether what stands before the other branch learns through it.
        """
        before = self._beside, self._own_weight
        self._beside, self._own_weight = (*self._beside, _Beside(branch, weight, passes_gradient)), own
        try:
            yield
        finally:
            self._beside, self._own_weight = before

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which the frozen model speaks without any adapter."""
        before = self._beside, self._own_weight
        self._beside, self._own_weight = (), 0.0
        try:
            yield
        finally:
            self._beside, self._own_weight = before

    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A block in which `base` is about to answer these prompts: the same for all."""
        return nullcontext()

    def train(self, mode: bool = True) -> AdaptedModel:
        if hasattr(self, "_hidden"):
            self.base.train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedModel:
        self.base._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedModel:
        """A copy with parameters of its own, of the same frozen weights."""
        shared = chain(self.base.parameters(), self.base.buffers())
        memo |= {id(tensor): tensor for tensor in shared} | {id(self.tokenizer): self.tokenizer}
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new


def _is_zero(weight: Weight) -> bool:
    return isinstance(weight, float | int) and weight == 0


def _times(change: Tensor, weight: Weight) -> Tensor:
    return change if isinstance(weight, float | int) and weight == 1 else change * weight


@contextmanager
def freeze(module: nn.Module) -> Iterator[None]:
    """A block in which no parameter of a module learns."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _matrices(base: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The adapted matrices by name, in the model's order.

    Raises:
        NetworkError: a target matches none, or no usual ones are known.
    """
    wanted = targets or _usual_targets(base)
    linear = {name: module for name, module in base.named_modules() if _is_linear(module)}
    found = {name: module for name, module in linear.items() if any(_ends_in(name, target) for target in wanted)}
    missing = [target for target in wanted if not any(_ends_in(name, target) for name in linear)]
    if missing:
        there = sorted({name.rpartition(".")[2] for name in linear})
        raise NetworkError(f"has no matrix {', '.join(missing)} to adapt (task.targets); it has {', '.join(there)}")
    return found


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _usual_targets(base: Any) -> Sequence[str]:
    """The matrices that peft adapts where nothing is said."""
    usual = peft_package().utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    family = base.config.model_type
    if family not in usual:
        raise NetworkError(f"is of the family {family}, whose usual matrices are not known: name them by task.targets")
    return tuple(usual[family])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _size(module: Any) -> tuple[int, int]:
    """(d_in, d_out); GPT-2's Conv1D holds its matrix the other way round."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _check_rank(adapter: Adapter, sizes: Sizes) -> None:
    name, size = min(sizes.items(), key=lambda item: min(item[1]))
    if adapter.rank > min(size):
        raise NetworkError(
            f"cannot have adapters of rank {adapter.rank} (task.rank): {name} has {size[0]} inputs and {size[1]}"
            f" outputs, and a rank is at most the lesser of them, {min(size)}"
        )
