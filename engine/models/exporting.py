"""A model in the formats of other tools: ONNX, TorchScript, and its tensors as safetensors or a state dict of torch.

ONNX and TorchScript hold the network from its inputs on, by the names and in the order of `inputs` in model.json, for
any number of examples; what `task.values` says is done before. Tensors bear the names that the network's own code gives
them, tied ones once for each name, so that they load into a network that was made without Tessera.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithms.nets.registry import own_names
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
    """Write a model to a new file, whole or not at all.

    Args:
        kind: one of `KINDS`.

    Raises:
        ExportError: the file is there already, a package is missing, or the network cannot be exported so.
    """
    if path.exists():
        raise ExportError(f"{path} is there already, and nothing is written over it; name another file by --out")
    make(path.parent)
    with replacing(path) as temporary, _quiet():
        KINDS[kind][1](model, temporary)


def own_state(model: LoadedModel) -> dict[str, Tensor]:
    """The model's tensors by the names of the network's own code, each with memory of its own."""
    state = model.net.state_dict()
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


KINDS: Mapping[str, tuple[str, Callable[[LoadedModel, Path], None]]] = {
    "onnx": (".onnx", _as_onnx),
    "torchscript": (".torchscript.pt", _as_torchscript),
    "safetensors": (".safetensors", _as_safetensors),
    "state_dict": (".state_dict.pt", _as_state),
}
"""By name: how files end, and what writes one."""


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
