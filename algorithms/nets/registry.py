"""Networks by name: our own, torchvision's, and any function's."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from importlib import import_module

from torch import nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.classifiers import cnn2, mlp, small_cnn
from algorithms.nets.errors import NetworkError
from algorithms.nets.resnet import RESNET8, RESNET18, RESNET34, RESNET50, resnet
from algorithms.nets.split import NEEDED, answer, probe, reason, split
from algorithms.nets.vision import vision_net

Shape = tuple[int, int, int]

Maker = Callable[[Shape, int, float], Classifier]

_SMALL = "for small images: a 3x3 stem without max pooling."

_NETS: dict[str, tuple[Maker, str]] = {
    "mlp": (mlp, "Perceptron with one hidden layer of 64 units."),
    "small_cnn": (small_cnn, "Three 3x3 convolutions of 8, 16 and 32 channels with batch normalisation."),
    "cnn2": (cnn2, "Two 5x5 convolutions of 32 and 64 channels and 128 hidden units, without normalisation."),
    "resnet8": (partial(resnet, RESNET8), "Residual network of 8 layers: three stages of 16, 32 and 64 channels."),
    "resnet18": (partial(resnet, RESNET18), f"ResNet-18 {_SMALL}"),
    "resnet34": (partial(resnet, RESNET34), f"ResNet-34 {_SMALL}"),
    "resnet50": (partial(resnet, RESNET50), f"ResNet-50 {_SMALL}"),
}

PATTERNS = {
    "torchvision:NAME": "Any classifier of torchvision by its builder's name, untrained, such as torchvision:resnet18.",
    "pkg.module:function": "What function(shape=(C, H, W), classes=N) returns: a Classifier, or ending in nn.Linear.",
}
"""Names that stand for many networks, and a sentence on each."""


def names() -> dict[str, str]:
    """Our own networks: name -> one sentence. `PATTERNS` says how to name others."""
    return {name: sentence for name, (_, sentence) in _NETS.items()}


def build(name: str, shape: Shape, classes: int, width: float = 1.0) -> Classifier:
    """A network with fresh weights, on the CPU and in train mode.

    Weights are drawn from torch's global generator, which the caller seeds.

    Args:
        name: one of `names()` or of the form of one of `PATTERNS`.
        shape: (channels, height, width) of the images.
        classes: number of logits, at least 1.
        width: fraction of the hidden channels, in (0, 1]; other than 1 for our own networks only.

    Raises:
        NetworkError: for a name that nothing answers to, or a network that cannot be made or does not fit.
    """
    try:
        _check_numbers(shape, classes, width)
        net = split(_make(name, shape, classes, width), shape, classes)
        _check_answer(net, shape, classes)
    except NetworkError as error:
        size = "x".join(map(str, shape))
        raise NetworkError(f"network {name!r} for images of {size} and {classes} classes: {error}") from error.__cause__
    return net


def _check_numbers(shape: Shape, classes: int, width: float) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise NetworkError("images need channels, height and width, each at least 1")
    if classes < 1:
        raise NetworkError("at least 1 class is needed")
    if not 0 < width <= 1:
        raise NetworkError(f"a width of {width} is asked; it must be a fraction above 0 and at most 1")


def _make(name: str, shape: Shape, classes: int, width: float) -> nn.Module:
    if name in _NETS:
        make, _ = _NETS[name]
        return make(shape, classes, width)
    if ":" not in name:
        raise NetworkError(_unknown(name))
    if width != 1:
        raise NetworkError(f"has one width only, and {width} is asked; narrower versions exist of {', '.join(_NETS)}")
    source, _, wanted = name.partition(":")
    return vision_net(wanted, shape, classes) if source == "torchvision" else _call(source, wanted, shape, classes)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _NETS, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"no such network{meant}; known are {', '.join([*_NETS, *PATTERNS])}"


def _call(source: str, wanted: str, shape: Shape, classes: int) -> nn.Module:
    """The module that a user's function returns."""
    try:
        function = getattr(import_module(source), wanted)
        net = function(shape=shape, classes=classes)
    # Whatever goes wrong in a user's module is the answer to why there is no network; the traceback travels as cause.
    except Exception as error:
        call = f"{source}:{wanted}(shape={shape}, classes={classes})"
        raise NetworkError(f"{call} cannot be called: {reason(error)}") from error
    if not isinstance(net, nn.Module):
        raise NetworkError(f"the function returned a {type(net).__name__}; {NEEDED}")
    return net


def _check_answer(net: Classifier, shape: Shape, classes: int) -> None:
    logits = tuple(answer(net, probe(shape)).shape)
    if logits != (2, classes):
        raise NetworkError(f"two images give logits of shape {logits}; needed is (2, {classes})")
