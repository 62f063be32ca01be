"""Adapters as peft has them, and as a part of the weights that they change."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from algorithms.nets.adapters import AdaptedModel
from algorithms.nets.language_models import peft_package
from algorithms.parts.low_rank import products


def peft_config(net: AdaptedModel, place: str) -> Any:
    """The LoraConfig of peft under which a model's own adapters give the same outputs.

    Args:
        place: folder or name on the hub of the frozen model.
    """
    return peft_package().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=place,
        inference_mode=True,
        r=net.rank,
        lora_alpha=_whole(net.adapter.scale * net.rank),
        lora_dropout=net.adapter.dropout,
        target_modules=list(net.matrices()),
        fan_in_fan_out=_holds_transposed(net),
    )


def peft_tensors(net: AdaptedModel) -> dict[str, Tensor]:
    """A model's own adapters by peft's names for them."""
    return {f"base_model.model.{name}.weight": value for name, value in net.state_dict().items()}


def merged_tensors(net: AdaptedModel) -> dict[str, Tensor]:
    """The state of the frozen model with W0 + s B A in the place of each adapted W0, in its own type."""
    state: dict[str, Tensor] = dict(net.base.state_dict())
    transposed = _holds_transposed(net)
    for matrix, product in products(net.state_dict()).items():
        weight = state[f"{matrix}.weight"]
        change = net.adapter.scale * (product.T if transposed else product)
        state[f"{matrix}.weight"] = (weight.float() + change).to(weight.dtype)
    return state


def _holds_transposed(net: AdaptedModel) -> bool:
    """Whether the frozen model holds its matrices as (d_in, d_out), as GPT-2 does."""
    modules = dict(net.base.named_modules())
    return not isinstance(modules[net.matrices()[0]], nn.Linear)


def _whole(alpha: float) -> float:
    """peft writes alpha as a whole number where it is one."""
    return int(alpha) if float(alpha).is_integer() else alpha
