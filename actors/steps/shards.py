"""Clients' shards: rows of columns that all clients of a machine share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from actors.steps.wire import accept_read_only
from algorithms.core.task import Shard


@dataclass(frozen=True, eq=False)
class ShardArrays:
    """A data set's training half and who holds which of its rows; called with a client's number it gives the shard.

    Attributes:
        columns: arrays (N, ...) by name.
        rows: int64, (total,), the rows of client 0, then those of client 1, and so on.
        ends: int64, (clients,), where each client's rows end in `rows`.
        tests: test examples by client, for methods whose clients have predictors of their own.
        validations: validation examples by client, for the same; of the same columns.
    """

    columns: Mapping[str, np.ndarray]
    rows: np.ndarray
    ends: np.ndarray
    tests: ShardArrays | None = None
    validations: ShardArrays | None = None

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray], rows: Sequence[np.ndarray]) -> ShardArrays:
        """From one array of row numbers per client."""
        joined = np.concatenate([np.asarray(r, dtype=np.int64) for r in rows]) if rows else np.empty(0, np.int64)
        return cls(columns, joined, np.cumsum([len(r) for r in rows], dtype=np.int64))

    @classmethod
    def whole(cls, columns: Mapping[str, np.ndarray]) -> Shard:
        """All rows of some columns as one shard."""
        return cls.of(columns, [np.arange(len(next(iter(columns.values()))))])(0)

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.ends)

    def __call__(self, client: int) -> Shard:
        start = int(self.ends[client - 1]) if client else 0
        whole = self._views
        return replace(whole, rows=whole.rows[start : int(self.ends[client])])

    @cached_property
    def _views(self) -> Shard:
        """Everybody's examples: made once, since views of arrays that may not be written to take longest to make."""
        with accept_read_only():
            columns = {name: torch.from_numpy(values) for name, values in self.columns.items()}
            return Shard(columns, torch.from_numpy(self.rows))

    def __reduce__(self) -> tuple[type[ShardArrays], tuple[Any, ...]]:
        return ShardArrays, (dict(self.columns), self.rows, self.ends, self.tests, self.validations)

    def test(self, client: int) -> Shard | None:
        """The client's test examples, None where clients have none of their own."""
        return None if self.tests is None else self.tests(client)

    def validation(self, client: int) -> Shard | None:
        """The client's validation examples, None where clients have none of their own."""
        return None if self.validations is None else self.validations(client)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        own = sum(values.nbytes for values in self.columns.values()) + self.rows.nbytes + self.ends.nbytes
        held = 0 if self.validations is None else self.validations.rows.nbytes + self.validations.ends.nbytes
        return own + held + (self.tests.nbytes if self.tests is not None else 0)
