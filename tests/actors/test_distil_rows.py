"""The shares of a GPU that the workers of a distillation keep to; a stand-in for Ray says what they have."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from actors.distillation import rows as distil_rows  # noqa: E402
from actors.distillation import trainer as distil_trainer  # noqa: E402
from actors.distillation.rows import Labeller, Sampler, own_device  # noqa: E402
from tests.distil_toys import Noise, toy_net  # noqa: E402


@pytest.fixture
def kept(monkeypatch):
    """Fractions of a card's memory that this process was told to keep to."""
    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    return fractions


@pytest.fixture
def card(monkeypatch):
    """Gives this process a share of a card, as Ray would tell it."""

    def given(share):
        assigned = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 0.25, "GPU": share})
        monkeypatch.setattr(distil_rows.ray, "get_gpu_ids", lambda: ["0"] if share else [])
        monkeypatch.setattr(distil_rows.ray, "get_runtime_context", lambda: assigned)

    return given


@pytest.mark.parametrize(("share", "fraction"), [(0.1, 0.1), (0.5, 0.5), (1.0, 1.0), (2.0, 1.0)])
def test_an_actor_with_a_card_keeps_to_its_share_of_it(card, kept, share, fraction):
    card(share)
    assert own_device() == torch.device("cuda")
    assert kept == [fraction]


def test_an_actor_without_a_card_computes_on_the_cpu_and_keeps_to_nothing(card, kept):
    card(0)
    assert own_device() == torch.device("cpu")
    assert kept == []


class Moved(nn.Module):
    """A network that only hears where it is sent to."""

    def __init__(self):
        super().__init__()
        self.places = []

    def to(self, place):
        self.places.append(place)
        return self


def test_samplers_and_teachers_keep_to_their_shares(card, kept):
    card(0.2)
    net = Moved()
    Sampler(Noise())
    Labeller(net, parts=1)
    assert kept == [0.2, 0.2]
    assert net.places == [torch.device("cuda")]


def test_train_workers_keep_to_their_shares(card, kept, monkeypatch):
    class Arrived(Exception):
        """The student has come to its card; what follows would need one."""

    class Student(Moved):
        def to(self, place):
            super().to(place)
            raise Arrived

    card(0.3)
    student = Student()
    monkeypatch.setattr(distil_trainer.ray, "get", lambda reference: reference)
    with pytest.raises(Arrived):
        distil_trainer._learn(SimpleNamespace(job=SimpleNamespace(student=student)), workers=1)
    assert kept == [0.3]
    assert student.places == [torch.device("cuda")]


def test_a_sampler_generates_where_its_latents_are(card, monkeypatch):
    card(0)
    sampler, places = Sampler(Noise()), []
    monkeypatch.setattr(
        Noise, "inputs", lambda self, latents: places.append(latents["z"].device) or (latents["z"],) * 2
    )
    sampler._device = torch.device("meta")
    with pytest.raises(NotImplementedError):  # what lies on this device has no values to send
        sampler({"index": torch.tensor([0]).numpy()})
    assert places == [torch.device("meta")]


def test_teachers_label_on_the_cpu_where_there_is_no_card(card):
    card(0)
    rows = list(Labeller(toy_net(1), parts=2)(Sampler(Noise())({"index": torch.tensor([0]).numpy()})))
    assert [row["inputs"].shape[1] for row in rows] == [5, 4]
