"""Networks by name and form: our own, torchvision's, and any function's."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.nets.classifiers import cnn2, mlp, small_cnn
from algorithms.nets.errors import NetworkError
from algorithms.nets.forms import Form, Images, Modalities, Sequences, Signals, Tables, Texts
from algorithms.nets.language_models import HUB
from algorithms.nets.modalities import two_branch
from algorithms.nets.resnet import RESNET8, RESNET18, RESNET34, RESNET50, resnet
from algorithms.nets.sequences import decoder, lstm_lm
from algorithms.nets.signals import cnn1d, resnet1d
from algorithms.nets.split import answer, reason, split
from algorithms.nets.tables import flat_linear, table_linear, table_mlp
from algorithms.nets.texts import fasttext, gru, lstm, textcnn, transformer
from algorithms.nets.ties import hold_once
from algorithms.nets.vision import vision_net

Maker = Callable[[Any, int, float], nn.Module]
"""(form, outputs, width) -> the network."""


@dataclass(frozen=True)
class _Network:
    """One of our own networks.

    Attributes:
        about: one sentence.
        makers: by the type of the form that the network serves.
        narrows: whether it has versions of a smaller width.
        side: least height and width of images.
    """

    about: str
    makers: Mapping[type, Maker]
    narrows: bool = True
    side: int = 1


_SMALL = "for small images: a 3x3 stem without max pooling."


def _residual(layout: Any) -> Mapping[type, Maker]:
    return {Images: partial(resnet, layout)}


_NETS: dict[str, _Network] = {
    "mlp": _Network(
        "Perceptron with one hidden layer of 64 units; of tables, categories are embedded.",
        {Images: mlp, Signals: mlp, Tables: table_mlp},
    ),
    "linear": _Network(
        "Linear model; of tables, with one weight for each value of a category.",
        {Images: flat_linear, Signals: flat_linear, Tables: table_linear},
        narrows=False,
    ),
    "small_cnn": _Network(
        "Three 3x3 convolutions of 8, 16 and 32 channels with batch normalisation.", {Images: small_cnn}, side=4
    ),
    "cnn2": _Network(
        "Two 5x5 convolutions of 32 and 64 channels and 128 hidden units, without normalisation.",
        {Images: cnn2},
        side=4,
    ),
    "resnet8": _Network("Residual network of 8 layers: three stages of 16, 32 and 64 channels.", _residual(RESNET8)),
    "resnet18": _Network(f"ResNet-18 {_SMALL}", _residual(RESNET18)),
    "resnet34": _Network(f"ResNet-34 {_SMALL}", _residual(RESNET34)),
    "resnet50": _Network(f"ResNet-50 {_SMALL}", _residual(RESNET50)),
    "cnn1d": _Network(
        "Three convolutions over time of 16, 32 and 64 channels with batch normalisation.", {Signals: cnn1d}
    ),
    "resnet1d": _Network(
        "Residual network of 8 layers over time: three stages of 16, 32 and 64 channels.", {Signals: resnet1d}
    ),
    "fasttext": _Network("Mean of the embeddings of a text's tokens, 64 entries each.", {Texts: fasttext}),
    "textcnn": _Network("Convolutions over 3, 4 and 5 tokens, 32 filters each, and their maxima.", {Texts: textcnn}),
    "lstm": _Network("LSTM of 64 units over a text's tokens, and the mean over them.", {Texts: lstm}, narrows=False),
    "gru": _Network("GRU of 64 units over a text's tokens, and the mean over them.", {Texts: gru}, narrows=False),
    "transformer": _Network(
        "Transformer encoder of two blocks, 4 heads and 64 entries.", {Texts: transformer}, narrows=False
    ),
    "lstm_lm": _Network("LSTM of 128 units that answers after every token.", {Sequences: lstm_lm}, narrows=False),
    "decoder": _Network(
        "Transformer decoder of two blocks, 4 heads and 64 entries, that answers after every token.",
        {Sequences: decoder},
        narrows=False,
    ),
    "two_branch": _Network(
        "A small network for each modality, as many as there are, and one linear head.",
        {Modalities: two_branch},
        narrows=False,
        side=4,
    ),
}

PATTERNS = {
    "hf:PATH": "A causal language model of transformers, from a folder or by its name on the model hub, for instruction"
    " following: frozen, with low-rank adapters.",
    "llama-nano": "A tiny one of 0.1 million parameters, pre-trained here where it is first named, and then cached; so "
    "are gpt2-nano, llama-micro (0.9 million) and llama-mini (3.5 million).",
    "torchvision:NAME": "Any classifier of torchvision by its builder's name, untrained, such as torchvision:resnet18.",
    "pkg.module:function": "The module that function(shape=(C, H, W), classes=N) returns for images, and"
    " function(form=FORM, outputs=N), a form of algorithms.nets.forms, for all else; if its last operation is an"
    " nn.Linear with a bias, methods that work on features serve it too.",
}
"""Names that stand for many networks, and a sentence on each."""


def names(form: Form | type | None = None) -> dict[str, str]:
    """Our own networks, all of them or those that serve a form: name -> one sentence. `PATTERNS` says how to name
    others."""
    wanted = form if form is None or isinstance(form, type) else type(form)
    return {name: net.about for name, net in _NETS.items() if wanted is None or wanted in net.makers}


def forms_of(name: str) -> tuple[type, ...]:
    """The types of the forms that one of our own networks serves."""
    return tuple(_NETS[name].makers)


def build(name: str, form: Form, outputs: int, width: float = 1.0) -> nn.Module:
    """A network with fresh weights, on the CPU and in train mode; a `Classifier` where it ends in a linear layer.

    Weights are drawn from torch's global generator, which the caller seeds.

    Args:
        name: one of `names(form)` or of the form of one of `PATTERNS`.
        form: what the network takes.
        outputs: size of the last axis of what it gives, at least 1: (B, outputs), of sequences (B, length, outputs).
        width: fraction of the hidden channels, in (0, 1]; other than 1 for some of our own networks only.

    Raises:
        NetworkError: for a name that nothing answers to, or a network that cannot be made or does not fit.
    """
    try:
        _check_numbers(form, outputs, width)
        whole = _make(name, form, outputs, width)
        if name not in _NETS:
            _check_state(whole)
            _check_training(whole, form)
        net = split(whole, form, outputs)
        _check_answer(net, form, outputs)
        if name not in _NETS and net is not whole:
            _check_training(net, form)
        hold_once(net)
    except NetworkError as error:
        raise NetworkError(f"network {name!r} for {form} and {outputs} outputs: {error}") from error.__cause__
    return net


def own_names(name: str, form: Form, outputs: int, width: float = 1.0) -> dict[str, str]:
    """Names of a network's tensors in its own code, of tied ones every name -> their names in states of what `build`
    returns. Weights are drawn as by `build`.

    Raises:
        NetworkError: see `build`.
    """
    whole = _make(name, form, outputs, width)
    before = whole.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for ours, value in split(whole, form, outputs).state_dict(keep_vars=True).items():
        first.setdefault(id(value), ours)
    return {own: first[id(value)] for own, value in before.items()}


def _check_numbers(form: Form, outputs: int, width: float) -> None:
    wrong = _missing(form)
    if wrong:
        raise NetworkError(wrong)
    if outputs < 1:
        raise NetworkError("at least 1 output is needed")
    if not 0 < width <= 1:
        raise NetworkError(f"a width of {width} is asked; it must be a fraction above 0 and at most 1")


def _missing(form: Form) -> str:
    """The part that a form lacks to be complete; empty where it lacks none."""
    match form:
        case Images(shape) if len(shape) != 3 or min(shape) < 1:
            return "images need channels, height and width, each at least 1"
        case Signals(shape) if len(shape) != 2 or min(shape) < 1:
            return "signals need channels and samples, each at least 1"
        case Texts(vocabulary, length) | Sequences(vocabulary, length) if vocabulary < 2 or length < 1:
            return "a vocabulary of at least 2 tokens and room for at least 1 are needed"
        case Tables(numbers, categories) if numbers + len(categories) < 1 or min(categories, default=1) < 1:
            return "rows need at least one number or category, and each category at least 1 value"
        case Modalities(parts) if not parts:
            return "at least one modality is needed"
        case Modalities(parts):
            return "; ".join(f"{name}: {wrong}" for name, part in parts.items() if (wrong := _missing(part)))
    return ""


def _make(name: str, form: Form, outputs: int, width: float) -> nn.Module:
    if name in _NETS:
        net, maker = _NETS[name], _NETS[name].makers.get(type(form))
        if maker is None:
            raise NetworkError(_unserved_reason(form))
        if width != 1 and not net.narrows:
            raise NetworkError(_one_width(form, width))
        if _least_side(form) < net.side:
            others = [other for other in names(form) if _NETS[other].side <= _least_side(form)]
            remedy = f"; networks for these are {', '.join(others)}" if others else ""
            raise NetworkError(f"takes images of {net.side}x{net.side} and more{remedy}")
        return maker(form, outputs, width)
    if ":" not in name:
        raise NetworkError(_unknown(name, form))
    if width != 1:
        raise NetworkError(_one_width(form, width))
    source, _, wanted = name.partition(":")
    if name.startswith(HUB):
        raise NetworkError("a language model serves tasks of instructions alone")
    if source != "torchvision":
        return _call(source, wanted, form, outputs)
    if not isinstance(form, Images):
        raise NetworkError(_unserved_reason(form))
    return vision_net(wanted, form.shape, outputs)


def _least_side(form: Form) -> float:
    """The height or width of images, whichever is less, of the smallest where there are several; infinite for all
    else."""
    match form:
        case Images(shape):
            return min(shape[1:])
        case Modalities(parts):
            return min(map(_least_side, parts.values()))
    return math.inf


def _kind(form: Form) -> str:
    """`images`, `texts`, ..."""
    return type(form).__name__.lower()


def _choice(form: Form) -> str:
    patterns = [pattern for pattern in PATTERNS if isinstance(form, Images) or not pattern.startswith("torchvision:")]
    return ", ".join([*names(form), *patterns])


def _unserved_reason(form: Form) -> str:
    return f"does not serve {_kind(form)}; networks that do are {_choice(form)}"


def _one_width(form: Form, width: float) -> str:
    narrow = [name for name in names(form) if _NETS[name].narrows]
    others = f"narrower versions exist of {', '.join(narrow)}" if narrow else f"no network for {_kind(form)} has others"
    return f"has one width only, and {width} is asked; {others}"


def _unknown(name: str, form: Form) -> str:
    near = difflib.get_close_matches(name, names(form), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"no such network{hint}; those for {_kind(form)} are {_choice(form)}"


def _call(source: str, attribute: str, form: Form, outputs: int) -> nn.Module:
    """The module that a user's function returns."""
    asked: dict[str, Any] = {"form": form, "outputs": outputs}
    if isinstance(form, Images):
        asked = {"shape": form.shape, "classes": outputs}
    try:
        function = getattr(import_module(source), attribute)
        net = function(**asked)
    # Whatever goes wrong in a user's module is the answer to why there is no network; the traceback travels as cause.
    except Exception as error:
        call = f"{source}:{attribute}({', '.join(f'{key}={value!r}' for key, value in asked.items())})"
        raise NetworkError(f"{call} cannot be called: {reason(error)}") from error
    if not isinstance(net, nn.Module):
        raise NetworkError(f"the function returned a {type(net).__name__}; needed is a torch.nn.Module")
    return net


def _check_answer(net: nn.Module, form: Form, outputs: int) -> None:
    found = tuple(answer(net, form).shape)
    needed = (2, form.length, outputs) if isinstance(form, Sequences) else (2, outputs)
    if found != needed:
        raise NetworkError(f"two examples give outputs of shape {found}; needed is {needed}")


def _check_state(net: nn.Module) -> None:
    for name, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            found = f"keeps a {type(value).__name__} in its state, {name}"
            raise NetworkError(f"{found}; only tensors are averaged and sent: register it as a buffer")


def _check_training(net: nn.Module, form: Form) -> None:
    """One pass forwards and backwards in train mode, which leaves weights, buffers and the global generator alone."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise NetworkError("has no parameter that is trained: all of it is frozen")
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            given = net(form.probe())
            if not isinstance(given, Tensor):
                raise NetworkError(f"gives a {type(given).__name__} in train mode, where a tensor is needed")
            torch.autograd.grad(given.sum(), parameters, allow_unused=True)
    except NetworkError:
        raise
    # Any layer and any author may fail in a way of their own.
    except Exception as error:
        raise NetworkError(f"cannot be trained: {reason(error)}") from error
    now = dict(net.named_buffers())
    with torch.no_grad():
        for name, value in before.items():
            now[name].copy_(value)
