"""Training done for one method is taken over by the next, to the bit, where both ask for the very same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from actors.jobs.recall import FolderStore, RecallingLoop, RecallingRunner
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.training import Work, fit
from algorithms.nets import Classifier
from tests.algorithms.test_dense import SMALLEST as DENSE
from tests.support import CLASSES, SHAPE, play, tiny_setup, tiny_shards, tiny_task

WORK = Work(steps=3, epochs=None, batch=8, lr=0.1)
SEED = Seed(3).at(round=0, phase="train", client=1)


class Counting(FolderStore):
    """A store that counts what it keeps and what it gives."""

    def __init__(self, folder):
        super().__init__(folder)
        self.kept = self.given = 0

    def get(self, key):
        value = super().get(key)
        self.given += value is not None
        return value

    def put(self, key, value):
        self.kept += 1
        super().put(key, value)


@pytest.fixture
def store(tmp_path):
    return Counting(tmp_path / "store")


def recalled(store, setup, rounds=2):
    loop = RecallingLoop(store, "tiny")
    return play(setup, RecallingRunner(setup, tiny_shards(len(setup.clients)), loop), rounds=rounds), loop


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("fedavg", {}),
        ("dense", {**DENSE, "norm": 0.0}),
        ("mosaic", {"warmup": 2, "generator": "pca", "meta_data": "images", "meta_images": 64, "meta_steps": 2}),
    ],
)
def test_a_run_that_takes_its_training_from_fedavg_has_the_digests_of_one_that_trains(store, method, config):
    recalled(store, tiny_setup("fedavg", clients=3), rounds=2)
    kept = store.kept
    setup = tiny_setup(method, clients=3, **({"distil_steps": 2} if method == "mosaic" else {}), **config)
    shared, loop = recalled(store, setup, rounds=2)
    assert shared.digests == play(setup, shards=tiny_shards(3), rounds=2).digests
    assert (kept, store.kept, store.given) == (6, 6, 6)
    assert loop.train_seconds == 0
    assert loop.saved_seconds > 0


def test_training_under_a_correction_of_the_method_is_never_shared(store):
    recalled(store, tiny_setup("fedavg", clients=3))
    recalled(store, tiny_setup("fedprox", clients=3))
    assert store.given == 0


def test_client_seconds_are_told_as_if_nothing_had_been_shared(store):
    setup = tiny_setup("fedavg", clients=3)
    _, trained = recalled(store, setup)
    second, _ = recalled(store, setup)
    assert trained.saved_seconds == 0
    assert second.book.client_seconds["train"] >= trained.train_seconds


def net_of(dropout: float = 0.0, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    inputs = SHAPE[0] * SHAPE[1] * SHAPE[2]
    body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 6), nn.ReLU(), nn.Dropout(dropout))
    return Classifier(body, nn.Linear(6, CLASSES))


def train(loop, net=None, shard=None, work=WORK, seed=SEED, position=0, task=None):
    net = net or net_of()
    fitted = loop(net, task or tiny_task(), shard or tiny_shards(3)(1), work, seed, position=position)
    return fitted, snapshot(net)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": SEED.at(round=1)},
        {"seed": SEED.at(client=2)},
        {"seed": replace(SEED, run=4)},
        {"position": 1},
        {"work": replace(WORK, lr=0.2)},
        {"work": replace(WORK, optimiser="adam")},
        {"work": replace(WORK, betas=(0.8, 0.9))},
        {"work": replace(WORK, eps=1e-3)},
        {"work": replace(WORK, label_smoothing=0.1)},
        {"work": replace(WORK, schedule=RateSchedule(warmup=2))},
        {"shard": tiny_shards(3)(2)},
        {"shard": tiny_shards(3, seed=8)(1)},
        {"task": replace(tiny_task(), mean=(0.5,))},
        {"net": net_of(seed=1)},
        {"net": net_of(dropout=0.5)},
    ],
    ids=str,
)
def test_anything_else_that_the_outcome_depends_on_is_trained_anew(store, change):
    train(RecallingLoop(store, "tiny"))
    train(RecallingLoop(store, "tiny"), **change)
    assert (store.kept, store.given) == (2, 0)


def test_a_rate_is_that_of_its_round_whatever_the_schedule_around_it(store):
    """In round 0 a step schedule has not fallen yet."""
    train(RecallingLoop(store, "tiny"))
    train(RecallingLoop(store, "tiny"), work=replace(WORK, schedule=RateSchedule("step", every=1, factor=0.5)))
    assert (store.kept, store.given) == (1, 1)


def test_the_same_rows_of_other_data_are_trained_anew(store):
    train(RecallingLoop(store, "tiny"))
    train(RecallingLoop(store, "other"))
    assert (store.kept, store.given) == (2, 0)


def test_what_is_drawn_after_the_training_is_the_same_as_without_recall(store):
    """Dropout takes torch's global generator further; a step may draw from it afterwards."""
    drawn = []
    for loop in (fit, RecallingLoop(store, "tiny"), RecallingLoop(store, "tiny")):
        net = net_of(dropout=0.5)
        torch.manual_seed(5)
        fitted, state = train(loop, net)
        drawn.append((fitted, {name: value.tolist() for name, value in state.items()}, torch.rand(1).item()))
    assert drawn[0] == drawn[1] == drawn[2]
    assert store.given == 1


def test_an_interrupted_write_leaves_nothing_that_would_be_read(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.put("abc", b"half")
    assert store.get("abc") is None


def test_adapters_are_trained_anew_whatever_stands_beside_them(store):
    """FedIT, and FedSDR's second stage beside a branch that its network does not show."""
    from tests.algorithms.support_language import language_setup, language_shards

    for name in ("fedit", "fedsdr"):
        config = {"targets": "raw"} if name == "fedsdr" else {}
        setup, loop = language_setup(name, clients=2, **config), RecallingLoop(store, "tiny")
        runner = RecallingRunner(setup, language_shards(2), loop)
        found = play(setup, runner, rounds=2, shards=language_shards(2))
        assert found.digest == play(setup, rounds=2, shards=language_shards(2)).digest
