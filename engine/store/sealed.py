"""Files of named tensors and JSON that carry their checksum in their name. No pickle is written or read.

The checksum stands in the name, not in a file beside it, so that one rename makes both valid at once: a run killed
between the writes of two files would leave one that nobody could trust.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.store.folder import settle

_NAME = re.compile(r"(?P<stem>.+)-(?P<checksum>[0-9a-f]{64})\.safetensors")
_HEADER = "tessera"


def seal(folder: Path, stem: str, tree: Any, tensors: Mapping[str, Tensor]) -> Path:
    """Write a file, sync it, and give it its name `STEM-SHA256.safetensors`; where that fails nothing is left.

    Tensors are saved with their bits, on the CPU; two that share memory are saved as two.

    Args:
        tree: anything that JSON can say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{stem}.part"
    try:
        save_file(apart(tensors), temporary, metadata={_HEADER: json.dumps(tree)})
        path = folder / f"{stem}-{checksum(temporary)}.safetensors"
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, on the CPU, each with memory of its own."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        ready[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return ready


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stem_of(path: Path) -> str | None:
    """The name that a file was sealed under; None where the file is no sealed one."""
    match = _NAME.fullmatch(path.name)
    return match["stem"] if match else None


def is_whole(path: Path) -> bool:
    """Whether a file's bytes are those that were sealed."""
    match = _NAME.fullmatch(path.name)
    return match is not None and checksum(path) == match["checksum"]


def unseal(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The tree and the tensors of a file, on the CPU; see `is_whole`."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()[_HEADER])
        # Copies begin where torch's own tensors do: a kernel may round otherwise on memory of another alignment.
        return tree, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
