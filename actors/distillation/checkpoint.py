"""Checkpoints of a distillation's student: named tensors and JSON in one file. No pickle is written or read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithms.core.distillation import Learner
from algorithms.core.records import flatten, rebuild
from algorithms.core.states import snapshot

_FILE = "student.safetensors"
_HEADER = "tessera"


@dataclass(frozen=True)
class StudentCheckpoint:
    """A student's checkpoint after some steps.

    Attributes:
        student: its state dict, on the CPU.
        moments: the optimiser's, by the number of the parameter.
        groups: the optimiser's settings.
        done: steps made.
    """

    student: dict[str, Tensor]
    moments: dict[int, dict[str, Any]]
    groups: list[dict[str, Any]]
    done: int

    @classmethod
    def of(cls, learner: Learner, student: nn.Module) -> StudentCheckpoint:
        """A learner whose student, unwrapped, is this one."""
        optimiser = learner.optimiser.state_dict()
        return cls(snapshot(student), optimiser["state"], optimiser["param_groups"], learner.done)

    def restore(self, learner: Learner, student: nn.Module) -> None:
        """The inverse of `of`."""
        student.load_state_dict(self.student)
        learner.optimiser.load_state_dict({"state": self.moments, "param_groups": self.groups})
        learner.done = self.done

    def write(self, folder: Path) -> None:
        """Store it in a folder."""
        tensors, tree = flatten(self)
        # safetensors refuses tensors that share memory.
        apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(apart, folder / _FILE, metadata={_HEADER: json.dumps(tree)})

    @classmethod
    def read(cls, folder: Path) -> StudentCheckpoint:
        """Read what `write` stored."""
        with safe_open(folder / _FILE, framework="pt") as file:
            tree = json.loads(file.metadata()[_HEADER])
            # Copies begin where torch's own tensors do: a kernel may round otherwise on memory of another alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        saved: StudentCheckpoint = rebuild(cls, tree, tensors)
        return saved
