"""Classification of rows of a table: numbers and categories, some of them missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.core import settings
from algorithms.core.classification import Classification, classes_of, has_label, label_column, no_labels
from algorithms.core.columns import ASKED, Columns, Roles, contents_of
from algorithms.core.settings import setting
from algorithms.core.task import LABEL, PreparedTask, Shard
from algorithms.nets.forms import Inputs, Tables
from algorithms.tasks._tables import NUMBERS, Encoding, features, table_batch


@dataclass(frozen=True)
class TableTask(Classification):
    """Tabular classification.

    Attributes:
        encoding: of the columns that are read.
    """

    title: ClassVar[str] = "tabular classification"

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        ignore: tuple[str, ...] = setting((), "columns that are not learnt from")

    encoding: Encoding

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return contents_of(columns, roles) in ([], ["number"]) and has_label(columns, roles) and "target" not in roles

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        names, labels, test_labels = classes_of(train, test, roles)
        read = features(train, roles, settings.ignore, otherwise=(label_column(train, roles),))
        encoding = Encoding.of(train, read)
        return PreparedTask(
            cls(names, encoding),
            train={**encoding.encode(train, "training"), LABEL: labels},
            test={**encoding.encode(test, "test"), LABEL: test_labels},
        )

    def question_columns(self, columns: Columns, roles: Roles) -> tuple[str, ...]:
        return self.encoding.names

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        encoded = self.encoding.encode(columns, ASKED)
        return {**encoded, LABEL: no_labels(len(encoded[NUMBERS]))}

    @property
    def form(self) -> Tables:
        return self.encoding.form

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """`numbers`, float32 (B, D), and `categories`, int64 (B, K); and classes, int64 (B,). Nothing is drawn."""
        rows = shard.rows[picks]
        return table_batch(shard, rows, device), shard.columns[LABEL][rows].to(device)
