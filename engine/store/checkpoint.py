"""Checkpoints of whole rounds: one sealed file each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError

from algorithms.core.payload import Memory
from algorithms.core.records import flatten, rebuild
from engine.errors import UserError
from engine.store.sealed import is_whole, seal, stem_of, unseal

StateT = TypeVar("StateT")

_NUMBER = re.compile(r"\d{6,}")


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Checkpoint(Generic[StateT]):
    """Everything that a run needs to go on.

    Attributes:
        done: how many rounds are complete, and so the number of the next one.
        state: the method's, after those rounds.
        memories: what each client keeps, by its number.
        extra: what else the engine wants back; anything that JSON can say.
    """

    done: int
    state: StateT
    memories: Mapping[int, Memory]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """The checkpoints that are kept.

    Attributes:
        last: so many of the newest, at least 1; with 2, a damaged newest one costs the work since the one before it.
        every: besides them, those after each so many rounds; None for no others.
    """

    last: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"{self}: last and every must be at least 1")

    def of(self, numbers: Iterable[int], best: int | None = None) -> tuple[int, ...]:
        """The numbers of complete rounds, of those given, whose checkpoints stay, `best` among them; ascending."""
        ordered = sorted(set(numbers))
        stays = {best, *ordered[-self.last :]}
        return tuple(n for n in ordered if n in stays or (self.every is not None and n % self.every == 0))


def save(folder: Path, checkpoint: Checkpoint[Any], keep: Keep, best: int | None = None) -> Path:
    """Write a checkpoint, and then remove those that the policy does not keep.

    Args:
        best: number of complete rounds whose checkpoint stays besides.

    Returns:
        its file, `NUMBER-SHA256.safetensors`.
    """
    tensors, tree = flatten({"state": checkpoint.state, "memories": checkpoint.memories})
    tree = {"done": checkpoint.done, **tree, "extra": checkpoint.extra}
    path = seal(folder, f"{checkpoint.done:06d}", tree, tensors)
    _prune(folder, path, keep, best)
    return path


def _files(folder: Path) -> list[tuple[int, Path]]:
    """(complete rounds, file), newest first."""
    stems = [(stem, path) for path in sorted(folder.glob("*")) if (stem := stem_of(path))]
    return sorted(((int(stem), path) for stem, path in stems if _NUMBER.fullmatch(stem)), reverse=True)


def _prune(folder: Path, newest: Path, keep: Keep, best: int | None) -> None:
    files = _files(folder)
    stays = keep.of((done for done, _ in files), best)
    current = next(done for done, path in files if path == newest)
    for done, path in files:
        if done not in stays or (done == current and path != newest):
            path.unlink()


def load(path: Path, state_type: type[StateT]) -> Checkpoint[StateT]:
    """A checkpoint, on the CPU.

    Raises:
        CheckpointError: where the file's bytes are not those that were written, or are those of another State.
    """
    if stem_of(path) is None:
        raise CheckpointError(f"{path} is not the name of a checkpoint, NUMBER-SHA256.safetensors")
    if not is_whole(path):
        raise CheckpointError(f"{path} was cut short or changed: its checksum is not the one in its name")
    try:
        return _read(path, state_type)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        name = f"{state_type.__module__}.{state_type.__qualname__}"
        raise CheckpointError(f"{path} does not hold a {name} as this version has it: {error!r}") from error


def _read(path: Path, state_type: type[StateT]) -> Checkpoint[StateT]:
    header, tensors = unseal(path)
    memories = {int(client): rebuild(dict[str, Any], memory, tensors) for client, memory in header["memories"].items()}
    return Checkpoint(header["done"], rebuild(state_type, header["state"], tensors), memories, header["extra"])


def after(folder: Path, done: int, state_type: type[StateT]) -> Checkpoint[StateT] | None:
    """The checkpoint after so many complete rounds; None where there is none.

    Raises:
        CheckpointError: it cannot be used.
    """
    found = [path for number, path in _files(folder) if number == done]
    return load(found[0], state_type) if found else None


def latest(
    folder: Path, state_type: type[StateT], report: Callable[[CheckpointError], None]
) -> Checkpoint[StateT] | None:
    """The newest checkpoint that can be trusted; None where there is none at all.

    Args:
        report: told of each newer one that was passed over, and why.

    Raises:
        CheckpointError: where there are some and none can be used.
    """
    files = _files(folder)
    for _, path in files:
        try:
            return load(path, state_type)
        except CheckpointError as error:
            report(error)
    if files:
        raise CheckpointError(f"none of the {len(files)} checkpoints in {folder} can be used; start the run anew")
    return None
