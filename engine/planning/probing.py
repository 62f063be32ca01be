"""One training step of every network of a run on two examples, before the run starts.

What goes wrong in it would go wrong in the first round, hosts and folder made. It changes nothing: the network is
thrown away, and global generators are left as they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from algorithms.core.training import fit
from algorithms.nets import NetworkError
from engine.errors import Problem
from engine.planning.federation import Federation

EXAMPLES = 2


def network_problems(federation: Federation) -> Iterator[Problem]:
    """Reasons why clients' networks cannot be made, or cannot be trained on these data. Narrower versions, which are of
    our own networks alone, are not tried."""
    first = {client.net: client.id for client in reversed(federation.setup.clients)}
    for name, client in sorted(first.items()):
        with _generators_kept():
            reason = _failure(federation, name, client)
        if reason:
            yield Problem("clients.net", name, reason)


def _failure(federation: Federation, name: str, client: int) -> str:
    """The fault of a network, of a client that has it; "" where there is none."""
    setup, shard = federation.setup, federation.shards(client)
    few = Shard(shard.columns, shard.rows[:EXAMPLES])
    work = replace(setup.work, steps=1, epochs=None, batch=EXAMPLES)
    try:
        net = setup.task.network(name)
        if len(few):
            fit(net, setup.task, few, work, Seed(setup.seed).at(round=0, client=client))
    except NetworkError as error:
        return str(error)
    # Any layer, any task and any author may fail in a way of their own.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        what = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
        title = setup.task.title
        return f"cannot be trained: one step of {title} on {len(few)} examples of client {client} fails with {what}"
    return ""


@contextmanager
def _generators_kept() -> Iterator[None]:
    """A block that may draw from global generators, which are then put back."""
    python, numpy = random.getstate(), np.random.get_state()  # networks of one's own may use it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
