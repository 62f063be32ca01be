"""The policy for faults: decisions only, which depend on nothing but the policy and the tries so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fault = Literal["host_lost", "client_error", "bad_update", "worker_lost", "memory_lost"]
"""A host's process died or did not answer; a step raised; what a step sent cannot be used; a process of the
distillation died; what a client kept was lost with its node."""

Action = Literal["retry", "leave out", "stop"]


_FAULTS = {
    "host_lost": "host lost",
    "client_error": "step raised",
    "bad_update": "update refused",
    "worker_lost": "process lost",
    "memory_lost": "memory lost with its node",
}
_ACTIONS = {"retry": "tried again", "leave out": "left out", "stop": "stopped"}


def describe(fault: Fault, action: Action) -> str:
    """Describe a fault and the action taken, for people."""
    return f"{_FAULTS[fault]}, {_ACTIONS[action]}"


@dataclass(frozen=True)
class FailurePolicy:
    """The action for each kind of fault.

    A retried step is given the very same order, so its result has the same bits. A client that is left out yields no
    update of that step, and keeps the memory that it had before.

    Attributes:
        on_host_lost: also where another process is lost, or a node with what clients remember. What cannot be left out
            (the student, a memory) is then an end of the run, or brought back from the last checkpoint.
        max_retries: how often one client's step is tried again before the run stops.
        deadline: seconds that one client's step may take on a host, which is then held for lost; None for no limit.
    """

    on_host_lost: Action = "retry"
    on_client_error: Action = "stop"
    on_bad_update: Action = "stop"
    max_retries: int = 3
    deadline: float | None = None

    def decide(self, fault: Fault, tries: int) -> Action:
        """The action for a fault of a step that has been retried `tries` times already."""
        actions: dict[Fault, Action] = {
            "host_lost": self.on_host_lost,
            "client_error": self.on_client_error,
            "bad_update": self.on_bad_update,
            # Nothing stands for a student that is left out.
            "worker_lost": "retry" if self.on_host_lost == "retry" else "stop",
            # A client that is left out needs it in the next round all the same.
            "memory_lost": "stop" if self.on_host_lost == "stop" else "retry",
        }
        exhausted = actions[fault] == "retry" and tries >= self.max_retries
        return "stop" if exhausted else actions[fault]

    def retries(self, fault: Fault) -> int:
        """The number of retries after such faults before the run stops."""
        return self.max_retries if self.decide(fault, 0) == "retry" else 0
