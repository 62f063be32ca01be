"""Answers of a trained network about further rows, as a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from actors.steps.worker import one_thread
from algorithms.core.columns import ColumnError
from algorithms.core.task import Shard, Task
from engine.data.questions import Question, QuestionError, Reading, refusal


def answer(net: nn.Module, task: Task, question: Question, reading: Reading, batch: int = 256) -> pa.Table:
    """A row for each that is asked about: what tells it apart, and what `Task.answers_about` says.

    Args:
        net: in eval mode.
        batch: rows at a time; bounds memory, and no answer depends on it but for rounding.

    Raises:
        QuestionError: rows that the task cannot have, or a task of one's own that cannot be asked.
    """
    try:
        arrays = task.question(question.columns, reading.roles)
    except ColumnError as error:
        raise refusal(question, error) from error
    except NotImplementedError as error:
        raise QuestionError(
            f"{type(task).__name__} does not say how rows without a target are read: give it `question` and `answers`"
        ) from error
    columns = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    shard = Shard(columns, torch.arange(len(question)))
    with one_thread(), torch.no_grad():
        found = [task.answers_about(net, shard, picks) for picks in torch.arange(len(question)).split(batch)]
    label, values = question.labels
    answers = {name: pa.array(np.concatenate([part[name] for part in found])) for name in found[0]}
    return pa.table({label: pa.array(list(values)), **answers})
