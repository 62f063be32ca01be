"""Random numbers that depend on what is being done, never on where or when it runs.

Every seed is derived from (run, round, phase, client, purpose) through numpy's SeedSequence, whose outputs are
documented as stable across versions and platforms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

SERVER = -1
"""The client number of the server's own phases."""

ANY_ROUND = -1
"""The round number of seeds that stay the same during a whole run."""


@lru_cache(maxsize=1024)
def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@dataclass(frozen=True)
class Seed:
    """The coordinates of a random draw in a run.

    Attributes:
        run: the seed of the configuration, 0 or larger.
        round: round number from 0, or `ANY_ROUND`.
        phase: name of the step or of the server's phase.
        client: client number from 0, or `SERVER`.
    """

    run: int
    round: int = ANY_ROUND
    phase: str = ""
    client: int = SERVER

    def at(self, *, round: int | None = None, phase: str | None = None, client: int | None = None) -> Seed:
        """This seed with some of its coordinates replaced."""
        return replace(
            self,
            round=self.round if round is None else round,
            phase=self.phase if phase is None else phase,
            client=self.client if client is None else client,
        )

    def number(self, purpose: str, index: int = 0) -> int:
        """A seed in [0, 2^63) for one purpose; `index` tells repeated draws of one purpose apart."""
        entropy = (self.run, self.round + 1, _word(self.phase), self.client + 1, _word(purpose), index)
        # numpy takes whole words as they are, and would make the same array of small numbers in twice the time.
        words = np.array(entropy, np.uint32) if max(entropy) < 2**32 else entropy
        high, low = np.random.SeedSequence(words).generate_state(2, np.uint32).tolist()
        return (high << 31) ^ low

    def torch(self, purpose: str, index: int = 0) -> torch.Generator:
        """A fresh CPU generator of torch for one purpose."""
        return torch.Generator().manual_seed(self.number(purpose, index))

    def numpy(self, purpose: str, index: int = 0) -> np.random.Generator:
        """A fresh generator of numpy for one purpose."""
        return np.random.default_rng(self.number(purpose, index))


@contextmanager
def torch_seeded(number: int) -> Iterator[None]:
    """Run a block whose draws come from torch's global generator, such as the making of layers or dropout.

    The generator's state is put back afterwards, so nothing outside the block can tell that it ran.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # torch.manual_seed formats the call stack once for each kind of device that is not there, which takes longer
        # than all else that surrounds a step.
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(number)
        yield
