"""torchvision: the one door through which the project imports it, and its classifiers for images of any channels."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.nets.errors import NetworkError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
)

_ONE_OUTPUT: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}
"""Arguments for the networks that would otherwise give a tuple of three outputs while they train."""


def torchvision() -> ModuleType:
    """The torchvision package. Import it through this function everywhere.

    A build of torchvision whose compiled operators cannot load beside the installed torch (a CUDA build beside a CPU
    torch, say) fails to import, because it describes operators that nobody has declared. Networks, data sets and
    transforms need none of them, so they are declared without an implementation, but only after a plain import has
    failed for that reason.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_operators()
    return import_module("torchvision")


@cache
def _declare_operators() -> torch.library.Library:
    """The schemas hold as long as the library object lives; the cache keeps it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def vision_net(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A classifier of torchvision by its builder's name, untrained.

    The first convolution is replaced where images have not three channels; its weights are drawn with the standard
    deviation of those it replaces.

    Raises:
        NetworkError: for an unknown name, with the nearest ones.
    """
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise NetworkError(f"torchvision has no classifier {name!r}; nearest: {', '.join(near or known)}")
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **_ONE_OUTPUT.get(name, {}))
    if shape[0] != 3:
        _take_channels(net, shape[0])
    return net


def trained_state(name: str) -> dict[str, Tensor]:
    """The tensors of torchvision's own pre-trained weights, of which it fetches those that it has not fetched before.

    Raises:
        NetworkError: an unknown name, or one without such weights.
        OSError: they are not here and cannot be fetched.
    """
    models = torchvision().models
    if name not in models.list_models(module=models):
        raise NetworkError(f"torchvision has no classifier {name!r}")
    weights = models.get_model_weights(name).DEFAULT
    state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return state


def _take_channels(net: nn.Module, channels: int) -> None:
    """Give the network's first convolution as many input channels as the images have."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    weight = torch.empty(first.out_channels, channels, *first.kernel_size)
    nn.init.normal_(weight, std=float(first.weight.detach().std()))
    first.in_channels, first.weight = channels, nn.Parameter(weight)
