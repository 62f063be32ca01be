"""A model of a run's folder, as a network that predicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from algorithms.core.task import Task
from algorithms.nets import NetworkError
from algorithms.nets.forms import Inputs
from engine.config.own_code import refuse_unnamed
from engine.data import questions
from engine.data.questions import Reading
from engine.errors import UserError
from engine.models.description import reading_of, task_of
from engine.models.predicting import answer
from engine.store.folder import FolderError, RunFolder
from engine.store.models import ModelEntry, choose_entry, read_description, read_tensors


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network as a run left it, in eval mode and on the CPU, and what it was taught.

    Attributes:
        net: takes the task's network inputs, and gives its outputs.
        task: normalises what is asked, and says what an answer means.
        network: the network's name, or its dotted path.
        width: fraction of its hidden channels.
        client: whose own model it is; None for that of all.
        reading: how the columns that it is asked about were read in training.
        facts: what model.json says, but for the list of models.
    """

    net: nn.Module
    task: Task
    network: str
    width: float
    client: int | None
    reading: Reading
    facts: Mapping[str, Any]

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        """The network's outputs for inputs as the task makes them, (B, ...)."""
        output: Tensor = self.net(inputs)
        return output

    def predict(self, rows: Path | str | pa.Table) -> pa.Table:
        """A table of answers about rows that need no label; see `Task.answers`.

        Args:
            rows: a folder of images, an image, a .csv, .jsonl, .parquet or .txt file, or an Arrow table, with the
                columns that the training rows had.

        Raises:
            QuestionError: they are not there, or not of this kind.
        """
        is_table = isinstance(rows, pa.Table)
        question = questions.of_table(rows, self.reading) if is_table else questions.read(Path(rows), self.reading)
        return answer(self.net, self.task, question, self.reading)


def load(folder: Path | str, client: int | None = None, code: Collection[str] = ()) -> LoadedModel:
    """The model that a run ended with; of a method with personal models that of a client.

    Args:
        code: modules of one's own that may be imported where the folder names them; see `engine.config.own_code`.

    Raises:
        FolderError: there is none, its files are damaged, or a client must be named.
        ConfigError: it names code that may not be imported.
    """
    files = RunFolder(Path(folder))
    facts, entries = read_description(files)
    entry = choose_entry(files, entries, client)
    if entry.network is None:
        raise FolderError(
            f"{files.path} ends with a predictor that is no network by name, so that it cannot be made again; "
            f"{files.model(client)} holds its tensors"
        )
    refuse_unnamed({"clients": {"net": entry.network}}, code, files.start_folder())
    state = read_tensors(files, entry)
    try:
        task = task_of(facts, code, files.start_folder())
        net = _network(task, entry)
        net.load_state_dict(state)
        return LoadedModel(net.eval(), task, entry.network, entry.width, client, reading_of(facts, task), facts)
    except (UserError, NetworkError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FolderError(f"{files.description} is damaged, or does not fit {files.model(client)}: {error}") from error


def _network(task: Task, entry: ModelEntry) -> nn.Module:
    if entry.foundation and task.foundation(str(entry.network)) != entry.foundation:
        raise FolderError(
            f"what {entry.network} names is another model now than the one that this run's adapters were trained on"
            ": its checksum is not the one in model.json; put that model back"
        )
    with torch.random.fork_rng(devices=[]):
        return task.network(str(entry.network), entry.width)
