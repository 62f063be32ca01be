"""The round loop: asks the method for one round after another and tells the watchers what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from actors.clock import PhaseClock
from actors.cohort.delivery import Book, ClientMetric, Delivery, resolve_outcome
from actors.failures import FailurePolicy
from actors.runner import Listener, Runner, StepRequest
from actors.steps.orders import WorkerSetup, find_method
from actors.steps.worker import OWN, OWN_VALIDATION, one_thread
from algorithms.core.contract import ClientSpec, Plan
from algorithms.core.distillation import Distillation
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard, Sums, add
from engine.records import GLOBAL, VALIDATION, Evaluation, RoundRecord, StageRecord, Watcher, evaluation_of
from engine.run.stopping import Stopping
