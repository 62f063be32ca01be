"""Weights that a run starts from, held against the clients' network before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from algorithms.core.contract import ClientSpec
from algorithms.core.task import Task
from algorithms.nets import NetworkError, own_names
from algorithms.nets.vision import trained_state
from engine.errors import ConfigError, Problem

KEY = "clients.weights"

VISION = "torchvision:"

HEAD = ("head.weight", "head.bias")
"""The layer that a pre-trained classifier of other classes begins anew."""

SHOWN = 10
"""Differences that a refusal lists."""


def starting_weights(
    source: str | None, clients: Sequence[ClientSpec], task: Task
) -> Mapping[str, Mapping[str, Tensor]]:
    """The tensors that the clients' network starts from, by the network's name; {} where none are named.

    They may bear the names of the network's own code, or those that its states have here.

    Raises:
        ConfigError: there are none, or they do not fit.
    """
    if source is None:
        return {}
    nets = sorted({client.net for client in clients})
    if len(nets) > 1:
        reason = f"is for one network that all clients share, and they have {', '.join(nets)}; leave it out"
        raise ConfigError([Problem(KEY, source, reason)])
    try:
        with torch.random.fork_rng(devices=[]):
            needed = task.network(nets[0]).state_dict()
    except NetworkError:
        return {}  # a problem of clients.net, which is reported there
    _refuse_other_foundation(source, nets[0], task)
    given, names = _read(source), _own_names(nets[0], task)
    named = given if given.keys() <= needed.keys() else {names.get(name, name): value for name, value in given.items()}
    fresh = _fresh_head(source, named, needed)
    wrong = list(_differences(named, needed, fresh))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        fit = f"does not fit the network {nets[0]} for {task.form} and {task.outputs} outputs"
        raise ConfigError([Problem(KEY, source, f"{fit}: {'; '.join(wrong[:SHOWN])}{more}")])
    return {nets[0]: {n: value.to(needed[n].dtype).contiguous() for n, value in named.items() if n not in fresh}}


def _own_names(net: str, task: Task) -> Mapping[str, str]:
    """See `own_names`; {} for a network that the task makes in a way of its own, whose states know no other names."""
    try:
        with torch.random.fork_rng(devices=[]):
            return own_names(net, task.form, task.outputs)
    except NetworkError:
        return {}


def _refuse_other_foundation(source: str, net: str, task: Task) -> None:
    """Refuse the folder of a run whose networks stood on something else than the clients' do."""
    path = _place(source) / "model.json"
    if not path.is_file():
        return
    try:
        (entry,) = json.loads(path.read_text(encoding="utf-8"))["models"]
        network, foundation = str(entry["network"]), str(entry.get("foundation", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # what is damaged there says nothing, and the tensors are held against the network all the same
    if foundation and foundation != task.foundation(net):
        reason = f"was trained on {network}, another frozen model than the clients' {net}, and does not fit it"
        raise ConfigError([Problem(KEY, source, f"{reason}; name that one by clients.net, or leave the weights out")])


def _place(source: str) -> Path:
    return Path(os.path.expandvars(source)).expanduser()


def _differences(given: Mapping[str, Tensor], needed: Mapping[str, Tensor], fresh: Sequence[str]) -> list[str]:
    shapes = {name: (tuple(given[name].shape), tuple(needed[name].shape)) for name in needed if name in given}
    return [
        *(f"{name} is missing" for name in needed if name not in given),
        *(f"{name} is {a} where {b} is needed" for name, (a, b) in shapes.items() if a != b and name not in fresh),
        *(f"{name} is none of its tensors" for name in given if name not in needed),
        *(f"{name} holds NaN or infinity" for name in shapes if not bool(torch.isfinite(given[name]).all())),
    ]


def _fresh_head(source: str, given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> Sequence[str]:
    """The entries of a pre-trained classifier's last layer, where it has other classes."""
    if not source.startswith(VISION) or not all(name in needed and name in given for name in HEAD):
        return ()
    return HEAD if given[HEAD[0]].shape != needed[HEAD[0]].shape else ()


def _read(source: str) -> dict[str, Tensor]:
    if source.startswith(VISION):
        return _refusing(source, lambda: trained_state(source.removeprefix(VISION)))
    given = _place(source)
    path = given / "model.safetensors" if given.is_dir() else given
    if not path.is_file():
        remedy = "name a .safetensors file, the folder of a finished run with one model, or torchvision:NAME"
        raise ConfigError([Problem(KEY, source, f"there is no file {path}; {remedy}")])
    return _refusing(source, lambda: {name: value.clone() for name, value in load_file(path).items()})


def _refusing(source: str, read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return read()
    except (NetworkError, SafetensorError, OSError, RuntimeError, ValueError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError([Problem(KEY, source, f"cannot be read ({line})")]) from error
