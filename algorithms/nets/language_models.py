"""Causal language models: tiny ones by name, and any that transformers reads, from a folder or the model hub.

The one place of `algorithms` that reads files: the weights of a named base model come from a folder. Everything else is
as elsewhere here. transformers and peft are imported when they are first used, since the core works without them.

The sizes of the tiny models are this project's own choice; Llama is of Touvron et al., arXiv 2302.13971, GPT-2 of
Radford et al., 2019.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from algorithms.nets.errors import NetworkError
from algorithms.nets.vision import torchvision

EXTRA = 'pip install "tessera-fl[llm]"'
HUB_PATIENCE = 3.0
"""Seconds for which the model hub may leave us without an answer before it counts as out of reach."""

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files of a model on the hub that are fetched: never pickled ones, never code."""

_DOUBLES = ("consolidated*", "original/*", "onnx/*")
"""Files there that hold the same weights once more, for other tools."""

_LOADING = threading.Lock()


@dataclass(frozen=True)
class TinyModel:
    """The shape of a language model that a few CPU cores can train; float32, input and output embeddings tied.

    Attributes:
        family: as transformers calls it.
        vocabulary: tokens.
        size: of the residual stream.
        heads: of queries; `size` is a multiple of it.
        key_heads: of keys and values.
        hidden: units of the perceptron in each layer.
        context: tokens that it can look back at, itself included.
    """

    family: Literal["llama", "gpt2"]
    vocabulary: int
    size: int
    layers: int
    heads: int
    key_heads: int
    hidden: int
    context: int

    @property
    def parameters(self) -> int:
        """Numbers in the network, tied embeddings counted once."""
        d, ff = self.size, self.hidden
        if self.family == "gpt2":
            layer = 4 * d * d + 4 * d + 2 * d * ff + ff + d + 4 * d
            return (self.vocabulary + self.context) * d + self.layers * layer + 2 * d
        d_kv = d * self.key_heads // self.heads
        return self.vocabulary * d + self.layers * (2 * d * d + 2 * d * d_kv + 3 * d * ff + 2 * d) + d

    def config(self) -> Any:
        """As transformers has it, without any dropout; what tokens mean is the tokenizer's matter."""
        transformers = transformers_package()
        common: dict[str, Any] = {"vocab_size": self.vocabulary, "tie_word_embeddings": True}
        common |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        if self.family == "gpt2":
            return transformers.GPT2Config(
                n_positions=self.context,
                n_embd=self.size,
                n_layer=self.layers,
                n_head=self.heads,
                n_inner=self.hidden,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        return transformers.LlamaConfig(
            hidden_size=self.size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            intermediate_size=self.hidden,
            max_position_embeddings=self.context,
            **common,
        )


TINY_MODELS: Mapping[str, TinyModel] = {
    "llama-nano": TinyModel("llama", 512, 64, 2, 4, 2, 176, 256),
    "llama-micro": TinyModel("llama", 1024, 128, 4, 4, 2, 352, 512),
    "llama-mini": TinyModel("llama", 2048, 256, 4, 8, 4, 704, 512),
    "gpt2-nano": TinyModel("gpt2", 512, 64, 2, 4, 4, 176, 256),
}


def transformers_package() -> ModuleType:
    """The transformers package. Import it through this function everywhere.

    Raises:
        NetworkError: where it is not installed.
    """
    torchvision()  # which transformers imports, and which may need help to be imported
    package = _package("transformers")
    package.utils.logging.disable_progress_bar()
    return package


def peft_package() -> ModuleType:
    """The peft package. Import it through this function everywhere.

    Raises:
        NetworkError: where it is not installed.
    """
    transformers_package()
    return _package("peft")


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise NetworkError(f"language models need the package {name}, which is not installed: {EXTRA}") from error


def fresh_model(name: str, seed: int) -> nn.Module:
    """A tiny model of random weights, the same ones for the same seed; float32, in training mode.

    Raises:
        NetworkError: for a name that is none of TINY_MODELS.
    """
    if name not in TINY_MODELS:
        raise NetworkError(f"no tiny language model is called {name!r}; known: {', '.join(TINY_MODELS)}")
    config = TINY_MODELS[name].config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = transformers_package().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.train()


def load_base(place: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
    """A frozen causal language model in evaluation mode, and its tokenizer.

    It is read once per process, place, dtype and device: each call gives new modules over the same parameters. The
    tokenizer is one for all. Where it has no token for padding, that for the end of a text serves, so that what is
    padding must be said by a mask and not read from the ids.

    Args:
        place: a folder that `save_pretrained` of transformers wrote, or a model's name on the hub. What was fetched
            before comes from transformers' cache; the network is asked last, and not at all where HF_HUB_OFFLINE is
            set. Weights are read from safetensors alone, and no code of a model's own is performed.

    Raises:
        NetworkError: without the extra `llm`; where nothing is there, or what is there is no model with a tokenizer
            of its own.
    """
    with _LOADING:
        model, tokenizer = _load_frozen(_folder_of(place), place, dtype, device)
    return shared_copy(model), tokenizer


def load_tokenizer(place: str) -> tuple[Any, int, int]:
    """The tokenizer of a language model, the number of tokens that the model answers with, and the tokens that it reads
    at once; the weights are not read.

    Raises:
        NetworkError: as `load_base`.
    """
    with _LOADING:
        tokenizer, config = _read_tokenizer(_folder_of(place), place)
    return tokenizer, int(config.vocab_size), int(getattr(config, "max_position_embeddings", 2**31 - 1))


def base_checksum(place: str) -> str:
    """SHA-256 (hex) of the names and shapes of a language model's tensors and of the first row of each, wherever its
    files lie: enough to tell models apart, and soon done for large ones.

    Raises:
        NetworkError: as `load_base`.
    """
    folder = _folder_of(place)
    _refuse_other_folders(folder, place)
    found = hashlib.sha256()
    try:
        for name, row, shape in sorted(_first_rows(folder), key=lambda entry: entry[0]):
            found.update(f"{name} {shape} ".encode())
            found.update(row.contiguous().view(torch.uint8).numpy().tobytes())
    except (OSError, SafetensorError) as error:
        raise NetworkError(f"{place} has weights that cannot be read: {_line(error)}") from error
    return found.hexdigest()


def _first_rows(folder: Path) -> Iterator[tuple[str, Tensor, list[int]]]:
    """Name, first row and shape of every tensor in a folder's files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(name)
                shape = part.get_shape()
                yield name, part[:1] if shape else part[:], shape


HUB = "hf:"
"""Begins the name of a network that is a language model in a folder or on the model hub."""


def place_of(net: str) -> str:
    """The folder or name on the hub of a language model, by the network's name."""
    return net.removeprefix(HUB)


def shared_copy(model: nn.Module) -> nn.Module:
    """New modules over the same parameters and buffers: adapters on one leave the other alone."""
    tensors = chain(model.parameters(), model.buffers())
    copied: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return copied


@lru_cache(maxsize=4)
def _load_frozen(folder: Path, place: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
    transformers = transformers_package()
    _refuse_other_folders(folder, place)
    given = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **given)
    except Exception as error:  # whatever transformers, safetensors and the files between them raise
        raise NetworkError(f"{place} is no causal language model that transformers reads: {_line(error)}") from error
    tokenizer, _ = _read_tokenizer(folder, place)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval().requires_grad_(False), tokenizer


@lru_cache(maxsize=4)
def _read_tokenizer(folder: Path, place: str) -> tuple[Any, Any]:
    """The tokenizer and the configuration of a model, whose weights are not read."""
    transformers = transformers_package()
    _refuse_other_folders(folder, place)
    given = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **given)
    except Exception as error:  # whatever transformers and the files between them raise
        raise NetworkError(f"{place} is no causal language model that transformers reads: {_line(error)}") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
    except Exception as error:  # as above
        raise NetworkError(f"{place} has no tokenizer that transformers reads: {_line(error)}") from error
    _fit_tokenizer(tokenizer, int(config.vocab_size), place)
    return tokenizer, config


def _fit_tokenizer(tokenizer: Any, rows: int, place: str) -> None:
    """Refuse a tokenizer that is another model's, and see to a token for padding."""
    if len(tokenizer) > rows:
        raise NetworkError(
            f"{place} holds a tokenizer that is not the model's: {len(tokenizer)} tokens, of which the model knows "
            f"{rows}; copy the tokenizer's files from where the model came from"
        )
    if tokenizer.eos_token is None:
        raise NetworkError(f"{place} has a tokenizer without a token for the end of a text, and no answer would end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _refuse_other_folders(folder: Path, place: str) -> None:
    if not (folder / "config.json").is_file():
        raise NetworkError(f"{place} has no config.json, so it is no model as transformers' save_pretrained writes one")
    if not _has_weights(folder):
        raise NetworkError(f"{place} has no weights as safetensors; pickled ones are not read: save them anew as those")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def _folder_of(place: str) -> Path:
    """The folder that a model's files lie in here, fetched from the hub where they have to be."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if _is_path(place):
        raise NetworkError(f"there is no folder {place}; make one with tessera pretrain, or name a model of the hub")
    transformers_package()
    return _snapshot(place)


def _is_path(place: str) -> bool:
    """Whether a place can be no name on the hub, which are NAME or OWNER/NAME."""
    return Path(place).is_absolute() or place.startswith((".", "~")) or place.count("/") > 1 or "\\" in place


def _snapshot(name: str) -> Path:
    hub = _package("huggingface_hub")
    try:
        folder = Path(hub.snapshot_download(name, local_files_only=True))
        if _has_weights(folder):
            return folder
    except hub.errors.LocalEntryNotFoundError:
        pass
    except hub.errors.HFValidationError as error:
        raise NetworkError(f"{name!r} is neither a folder here nor a model's name on the hub") from error
    if hub.constants.HF_HUB_OFFLINE:
        raise NetworkError(f"{name} is neither a folder here nor in the cache of models, and HF_HUB_OFFLINE is set")
    return _fetch(hub, name)


def _fetch(hub: ModuleType, name: str) -> Path:
    """The model from the hub. Whether that answers is found out first, since its own client waits for half a minute."""
    try:
        hub.HfApi().model_info(name, timeout=HUB_PATIENCE)
        return Path(hub.snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_DOUBLES)))
    except hub.errors.RepositoryNotFoundError as error:
        raise NetworkError(f"{name} is neither a folder here nor a model that the hub shows to you") from error
    except Exception as error:  # of the network, of whatever kind
        raise NetworkError(
            f"{name} is neither a folder here nor in the cache of models, and the hub gives nothing: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
