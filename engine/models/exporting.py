"""A model in the formats of other tools: ONNX, TorchScript, its tensors as safetensors or a state dict of torch; and of
language models, folders that peft and transformers load.

ONNX and TorchScript hold the network from its inputs on, by the names and in the order of `inputs` in model.json, for
any number of examples; what `task.values` says is done before. Tensors bear the names that the network's own code gives
them, tied ones once for each name, so that they load into a network that was made without Tessera.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithms.nets.adapters import AdaptedModel
from algorithms.nets.language_models import HUB, place_of
from algorithms.nets.registry import own_names
from algorithms.parts.peft_format import merged_tensors, peft_config, peft_tensors
from engine.errors import UserError
from engine.models.description import probe_of
from engine.models.loading import LoadedModel
from engine.store.folder import make, replacing
from engine.store.sealed import apart


class ExportError(UserError):
    """A model that cannot be exported so; the message says why, and the way out."""


class Positional(nn.Module):
    """A network that takes its inputs one by one, in the order of their names, where it takes them by name."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """float (B, ...): the network's outputs."""
        given = inputs[0] if self.names == ("input",) else dict(zip(self.names, inputs, strict=True))
        output: Tensor = self.net(given)
        return output


def file_name(run: str, kind: str, client: int | None) -> str:
    """A name for the file of a run's model, or of a client's own."""
    return f"{run}{'' if client is None else f'-client-{client}'}{KINDS[kind][0]}"


def export(model: LoadedModel, kind: str, path: Path) -> None:
    """Write a model to a new file, or a new folder, whole or not at all.

    Args:
        kind: one of `KINDS`.

    Raises:
        ExportError: the file is there already, a package is missing, or the network cannot be exported so.
    """
    if path.exists():
        raise ExportError(f"{path} is there already, and nothing is written over it; name another place by --out")
    make(path.parent)
    place = _replacing_folder(path) if kind in FOLDERS else replacing(path)
    with place as temporary, _quiet():
        KINDS[kind][1](model, temporary)


def own_state(model: LoadedModel) -> dict[str, Tensor]:
    """The model's tensors by the names of the network's own code, each with memory of its own; of adapters, by their
    own names."""
    state = model.net.state_dict()
    if isinstance(model.net, AdaptedModel):
        return apart({name: value.clone() for name, value in state.items()})
    with torch.random.fork_rng(devices=[]):
        names = own_names(model.network, model.task.form, model.task.outputs, model.width)
    return apart({own: state[ours].clone() for own, ours in names.items()})


def _as_state(model: LoadedModel, path: Path) -> None:
    torch.save(own_state(model), path)


def _as_safetensors(model: LoadedModel, path: Path) -> None:
    save_file(own_state(model), path, metadata={"format": "pt"})


def _as_torchscript(model: LoadedModel, path: Path) -> None:
    module, inputs = _module(model)
    with _explaining(model, "TorchScript"):
        torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), str(path))


def _as_onnx(model: LoadedModel, path: Path) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs the packages {' and '.join(missing)}: pip install 'tessera-fl[onnx]'")
    module, inputs = _module(model)
    names = list(probe_of(model.task, 2))
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in names),)
    with _explaining(model, "ONNX"):
        torch.onnx.export(
            module,
            inputs,
            path,
            input_names=names,
            output_names=["output"],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


def _module(model: LoadedModel) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with inputs one by one, and examples of these."""
    probe = probe_of(model.task, 2)
    return Positional(model.net, list(probe)).eval(), tuple(probe.values())


def _as_peft(model: LoadedModel, folder: Path) -> None:
    net = _adapted_net(model)
    # A tiny model's name means nothing to peft, which looks for the folder that it was loaded from.
    base = place_of(model.network) if model.network.startswith(HUB) else str(net.base.name_or_path)
    peft_config(net, base).save_pretrained(folder)
    save_file(apart(peft_tensors(net)), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _as_merged(model: LoadedModel, folder: Path) -> None:
    net = _adapted_net(model)
    net.base.save_pretrained(folder, state_dict=merged_tensors(net))
    net.tokenizer.save_pretrained(folder)


def _adapted_net(model: LoadedModel) -> AdaptedModel:
    if isinstance(model.net, AdaptedModel):
        return model.net
    raise ExportError(f"{model.network} is no language model with adapters, which peft and merged are for")


KINDS: Mapping[str, tuple[str, Callable[[LoadedModel, Path], None]]] = {
    "onnx": (".onnx", _as_onnx),
    "torchscript": (".torchscript.pt", _as_torchscript),
    "safetensors": (".safetensors", _as_safetensors),
    "state_dict": (".state_dict.pt", _as_state),
    "peft": ("-peft", _as_peft),
    "merged": ("-merged", _as_merged),
}
"""By name: how files end, and what writes one."""

FOLDERS = frozenset({"peft", "merged"})
"""Those that are written as a folder."""


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which at the end of the block takes its name; where the block raises, it is gone."""
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _explaining(model: LoadedModel, words: str) -> Iterator[None]:
    try:
        yield
    # An exporter fails in whatever way a network's code and its own happen to meet.
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"{model.network} cannot be written as {words}: {reason}; safetensors and state_dict take any network"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """A block without the exporters' own advice, which speaks to whoever wrote the network."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
