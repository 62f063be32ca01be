"""A language model of random weights, and a federation of clients with adapters on it, small enough for every test."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.steps.orders import WorkerSetup, find_method
from actors.steps.shards import ShardArrays
from algorithms.core.columns import Column, Columns
from algorithms.core.contract import ClientSpec
from algorithms.core.task import PreparedTask
from algorithms.core.training import Work

NEEDED = pytest.importorskip("transformers", reason="the extra `llm` is not installed", exc_type=ImportError)

WORDS = ("red", "blue", "green", "small", "large", "round")
EXAMPLES = 72


@cache
def base(name: str = "llama-nano", seed: int = 3) -> str:
    """The network's name of a tiny model of random weights, in a folder that goes with this process."""
    from algorithms.nets.byte_pairs import byte_pair_tokenizer
    from algorithms.nets.language_models import fresh_model

    folder = Path(tempfile.mkdtemp(prefix="tessera-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fresh_model(name, seed).save_pretrained(folder)
    byte_pair_tokenizer([text for row in rows() for text in row[:2]], 512, 256).save_pretrained(folder)
    return f"hf:{folder}"


def rows() -> list[tuple[str, str, str, str]]:
    """Instruction, answer, key and kind: sums of two numbers, and words to be said again."""
    found = []
    for number in range(EXAMPLES // 2):
        one, other = number % 9, (5 * number) % 7
        found.append((f"What is {one} plus {other}?", f"It is {one + other}.", str(one + other), "sum"))
        word = WORDS[number % len(WORDS)]
        found.append((f"Say {word} {number} times {one}.", f"Well: {word}.", word, "word"))
    return found


def columns() -> Columns:
    """The rows as columns of a data set."""
    names = ("instruction", "answer", "key", "domain")
    texts = [np.array(values, dtype=object) for values in zip(*rows(), strict=True)]
    return {name: Column("text", values) for name, values in zip(names, texts, strict=True)}


@cache
def prepared(**settings: Any) -> PreparedTask:
    """The task of these rows, which are its training and its test half."""
    from algorithms.tasks.instructions import InstructionTask

    chosen = {"net": base(), "context": 48, "rank": 4, "alpha": 8.0, **settings}
    return InstructionTask.prepare(columns(), columns(), {}, InstructionTask.Settings(**chosen))


def language_shards(clients: int = 6) -> ShardArrays:
    """The rows dealt out in turn."""
    return ShardArrays.of(prepared().train, [np.arange(k, EXAMPLES, clients) for k in range(clients)])


def language_setup(
    method: str,
    *,
    clients: int = 6,
    widths: Sequence[float] = (1.0,),
    work: Work | None = None,
    seed: int = 3,
    task: dict[str, Any] | None = None,
    **config: Any,
) -> WorkerSetup:
    """A setup for these rows; client k has the k-th of `widths`, in turn; `config` goes to the method's Config, `task`
    to the task's Settings."""
    return WorkerSetup(
        method=method,
        config=find_method(method).Config(**config),
        task=prepared(**(task or {})).task,
        work=work or Work(steps=2, epochs=None, batch=4, lr=0.05),
        clients=tuple(ClientSpec(k, base(), widths[k % len(widths)]) for k in range(clients)),
        seed=seed,
    )
