"""Models of a finished run: files of tensors, and one that says what they are and how they are used.

`model.safetensors`, or of a method with personal models files such as `models/client-0003.safetensors`, are written
first. `model.json`, which holds the checksum of each, comes last: where it is, they are whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.store.folder import FolderError, RunFolder, replacing
from engine.store.sealed import apart, checksum


@dataclass(frozen=True)
class ModelEntry:
    """One model of a run, as model.json lists it.

    Attributes:
        client: whose own it is; None for the model that the method ends with.
        network: its name, or its dotted path; None where the predictor is no network by name.
        width: fraction of the network's hidden channels.
        sha256: of its file.
        foundation: checksum of what the network has besides its state; see `Task.foundation`.
    """

    client: int | None
    network: str | None
    width: float
    sha256: str
    foundation: str = ""


def write_tensors(
    files: RunFolder,
    state: Mapping[str, Tensor],
    client: int | None,
    network: str | None,
    width: float,
    foundation: str = "",
) -> ModelEntry:
    """Write a model's state, and return its entry for `write_description`."""
    path = files.model(client)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(apart(state), temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # which the library would give to its owner alone
    return ModelEntry(client, network, width, checksum(path), foundation)


def write_description(files: RunFolder, entries: Sequence[ModelEntry], facts: Mapping[str, Any]) -> None:
    """model.json: what all models have in common, and the models."""
    text = json.dumps({**facts, "models": [asdict(entry) for entry in entries]}, indent=2, ensure_ascii=False)
    with replacing(files.description) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_description(files: RunFolder) -> tuple[dict[str, Any], tuple[ModelEntry, ...]]:
    """Read the file of `write_description`.

    Raises:
        FolderError: there is none, or it is damaged.
    """
    path = files.description
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts, tuple(ModelEntry(**entry) for entry in facts.pop("models"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FolderError(_absence(files)) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FolderError(f"{path} is damaged: {error!r}") from error


def _absence(files: RunFolder) -> str:
    """The reason why there is no description, and the way out."""
    if not files.path.exists():
        return f"{files.path} is not there; name the folder of a finished run, as `tessera run` printed it"
    if not (files.path / "config.yaml").is_file():
        return f"{files.path} is no run's folder; name that of a finished run, as `tessera run` printed it"
    reason = "the run has not finished, or an older version made it"
    return f"{files.description} is missing: {reason}; `tessera resume` finishes a run"


def choose_entry(files: RunFolder, entries: Sequence[ModelEntry], client: int | None) -> ModelEntry:
    """The model that is meant.

    Raises:
        FolderError: a client must be named, or has no model.
    """
    found = [entry for entry in entries if entry.client == client]
    if len(found) == 1:
        return found[0]
    owners = [entry.client for entry in entries if entry.client is not None]
    if not owners:
        raise FolderError(f"{files.path} has one model for all clients, and none of client {client}'s own")
    between = f"{owners[0]}" if len(owners) == 1 else f"{min(owners)} to {max(owners)}"
    asked = "which one is not said" if client is None else f"client {client} has none"
    raise FolderError(f"{files.path} holds its clients' own models, and {asked}; name one by --client, {between}")


def read_tensors(files: RunFolder, entry: ModelEntry) -> dict[str, Tensor]:
    """A model's state, on the CPU.

    Raises:
        FolderError: its file is missing, or was changed.
    """
    path = files.model(entry.client)
    try:
        if checksum(path) != entry.sha256:
            raise FolderError(f"{path} was changed or cut short: its checksum is not the one in {files.description}")
        # Copies begin where torch's own tensors do: a kernel may round otherwise on memory of another alignment.
        return {name: value.clone() for name, value in load_file(path).items()}
    except FileNotFoundError as error:
        raise FolderError(f"{path} is missing; the run's folder was changed after the run") from error
    except (SafetensorError, OSError) as error:
        raise FolderError(f"{path} is damaged: {error}") from error
