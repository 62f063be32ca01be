"""One training step before the start: what could not be trained is refused before anything is written."""

import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from engine.commands.cli import cli
from engine.config import resolve
from engine.planning.federation import Federation
from engine.planning.probing import network_problems
from tests.engine.test_config import changed

TOUCHED: list[float] = []


def plain(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))


class WithExtraState(nn.Module):
    """As TransformerEngine's modules and some quantisers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": 1.0}

    def set_extra_state(self, state: dict[str, float]) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class TwoWhileTraining(nn.Module):
    """As GoogLeNet and Inception."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.head(images.flatten(1))
        return (logits, logits) if self.training else logits


class HalfWhileTraining(nn.Module):
    """Answers for half of the examples in train mode: no layer objects, the loss does."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(images.flatten(1))
        return logits[: len(logits) // 2] if self.training else logits


class WritesOverWhatItNeeds(nn.Module):
    """The backward pass alone fails."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(images.flatten(1)).sigmoid()
        return found.mul_(2)


class TouchesEverything(nn.Module):
    """Draws from every global generator, and counts in a buffer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)
        self.register_buffer("calls", torch.zeros(()))
        self.lazy: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        TOUCHED.append(random.random() + np.random.rand() + float(torch.rand(())))
        self.calls += 1
        return self.head(nn.functional.dropout(images.flatten(1)))


def with_extra_state(shape, classes):
    return WithExtraState(classes)


def two_while_training(shape, classes):
    return TwoWhileTraining(classes)


def half_while_training(shape, classes):
    return HalfWhileTraining(classes)


def writes_over_what_it_needs(shape, classes):
    return WritesOverWhatItNeeds(classes)


def touches_everything(shape, classes):
    return TouchesEverything(classes)


def all_frozen(shape, classes):
    return plain(shape, classes).requires_grad_(False)


WRONG = {
    "with_extra_state": "keeps a dict in its state, _extra_state",
    "two_while_training": "gives a tuple in train mode, where a tensor is needed",
    "half_while_training": "one step of image classification on 2 examples of client 0 fails with ValueError",
    "writes_over_what_it_needs": "cannot be trained: RuntimeError",
    "all_frozen": "has no parameter that is trained: all of it is frozen",
}


def gathered(**sections):
    return Federation.gather(resolve(changed(**sections)))


@pytest.mark.parametrize("kind", ["inline", "ray"])
@pytest.mark.parametrize("name", WRONG)
def test_a_network_that_cannot_be_trained_is_refused_with_exit_2_and_nothing_written(name, kind, tmp_path):
    out = tmp_path / "out"
    options = ["--set", f"clients.net={__name__}:{name}", "--set", f"runner.kind={kind}", "--out", str(out)]
    done = CliRunner().invoke(cli, ["run", "fedavg-digits", *options])
    assert done.exit_code == 2, done.output
    assert f'clients.net = "{__name__}:{name}"' in done.output
    assert WRONG[name] in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_every_network_of_a_run_is_tried_and_each_told_once():
    nets = [f"{__name__}:{name}" for name in ("half_while_training", "plain", "all_frozen", "half_while_training")]
    problems = list(network_problems(gathered(clients={"net": nets})))
    assert [problem.value for problem in problems] == [nets[2], nets[0]]
    assert "client 0 fails" in problems[1].reason


def test_the_step_leaves_every_generator_as_it_was():
    federation = gathered(clients={"net": f"{__name__}:touches_everything"})
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    TOUCHED.clear()
    assert list(network_problems(federation)) == []
    assert TOUCHED
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
