"""Networks that have one tensor under several names: their states, and every method that steps or corrects weights."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from algorithms.core.seeds import torch_seeded
from algorithms.core.stacking import stackable
from algorithms.core.states import norm_buffers, norm_entries, snapshot, state_bytes, trainable
from algorithms.core.training import Work
from algorithms.nets import Classifier, Images, build
from algorithms.nets.ties import aliases
from tests.support import SHAPE, play, tiny_setup

IMAGES = Images(SHAPE)


class Twice(nn.Module):
    """One 16x16 matrix in two layers: registered under two names, or once and used twice. The same draws."""

    def __init__(self, classes: int, *, tied: bool, frozen: bool = False) -> None:
        super().__init__()
        self.inside, self.first, second = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.bias = second.bias
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if tied:
            self.second = nn.Linear(16, 16, bias=False)
            self.second.weight = self.first.weight
        self.tied = tied
        self.out = nn.Linear(16, classes)
        self.inside.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        hidden = self.first(self.inside(images.flatten(1)).relu()).relu()
        again = self.second(hidden) if self.tied else nn.functional.linear(hidden, self.first.weight)
        return self.out((again + self.bias).relu())


def twice(classes: int, *, tied: bool, frozen: bool = False) -> nn.Module:
    with torch_seeded(5):
        net = Twice(classes, tied=tied, frozen=frozen)
    # Both have drawn alike so far, and then one of them more.
    with torch_seeded(6):
        net.out.reset_parameters()
    return net


def tied(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return twice(classes, tied=True)


def untied(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return twice(classes, tied=False)


def tied_frozen(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return twice(classes, tied=True, frozen=True)


def untied_frozen(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return twice(classes, tied=False, frozen=True)


def tied_norms(shape: tuple[int, int, int], classes: int) -> nn.Module:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, classes))
    net[1].weight = net[0].weight
    return net


def tied_perceptron(shape: tuple[int, int, int], classes: int) -> nn.Module:
    layers = [nn.Linear(64, 64), nn.Linear(64, 64)]
    layers[1].weight = layers[0].weight
    body = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU())
    return Classifier(body, nn.Linear(64, classes))


def built(name: str) -> nn.Module:
    with torch_seeded(0):
        return build(f"{__name__}:{name}", IMAGES, 3)


TIED = {"body.second.weight": "body.first.weight"}

# States


def test_a_state_holds_a_tied_tensor_once_under_its_first_name():
    net = built("tied")
    assert aliases(Twice(3, tied=True)) == {"second.weight": "first.weight"}
    assert list(snapshot(net)) == list(built("untied").state_dict())
    assert state_bytes(net) == 4 * (64 * 16 + 16 + 16 * 16 + 16 + 16 + 16 * 3 + 3) + 8
    assert set(trainable(net)) == snapshot(net).keys() - {"body.seen"}


@pytest.mark.parametrize("surplus", [False, True])
@pytest.mark.parametrize("wrap", [lambda net: net, copy.deepcopy, lambda net: nn.ModuleList([net])[0]])
def test_every_name_follows_the_first_when_a_state_is_loaded(wrap, surplus):
    net = wrap(built("tied"))
    state = {name: torch.full_like(value, 2) for name, value in net.state_dict().items()}
    stale = {name: torch.full((16, 16), 9.0) for name in TIED} if surplus else {}
    net.load_state_dict({**state, **stale})
    assert net.body.second.weight is net.body.first.weight
    assert torch.equal(net.body.second.weight, torch.full((16, 16), 2.0))


def test_a_tied_network_inside_another_and_one_that_was_saved_keep_their_ties():
    holder = nn.ModuleList([nn.Identity(), built("tied")])
    assert "1.body.second.weight" not in holder.state_dict()
    holder.load_state_dict({name: torch.ones_like(value) for name, value in holder.state_dict().items()})
    assert torch.equal(holder[1].body.second.weight, torch.ones(16, 16))
    file = io.BytesIO()
    torch.save(built("tied"), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert list(again.state_dict()) == list(built("tied").state_dict())
    again.load_state_dict(built("tied").state_dict())


def test_a_network_without_ties_is_left_without_hooks():
    net = built("untied")
    assert not net._state_dict_hooks
    assert not net._load_state_dict_pre_hooks


def test_a_state_that_passes_through_a_tied_network_reaches_every_name():
    net, other, images = built("tied"), built("tied"), IMAGES.probe()
    with torch.no_grad():
        net.body.first.weight.mul_(3)
        assert torch.equal(functional_call(other.eval(), net.state_dict(), (images,)), net.eval()(images))


def test_tied_norms_are_entries_once_and_no_buffers():
    net = built("tied_norms")
    assert norm_entries(net) <= net.state_dict().keys()
    assert not any(name.endswith("weight") for name in norm_buffers(net))


def test_tied_layers_are_not_trained_stacked():
    assert not stackable(built("tied_perceptron"))


# Methods; what all of them do is in test_every_method.py


def test_a_counter_of_a_tied_network_counts_the_steps_of_the_rounds():
    setup = tiny_setup(
        "fedavgm", nets=(f"{__name__}:tied",), clients=3, work=Work(steps=3, epochs=None, batch=8, lr=0.1)
    )
    seen = play(setup, rounds=2).state.model["body.seen"]
    assert seen.dtype == torch.int64
    assert int(seen) == 2 * 3


MOSAIC = {
    "generator": "features",
    "experts": "replay",
    "warmup": 2,
    "meta_feedforward": 32,
    "meta_steps": 4,
    "meta_images": 24,
    "distil_steps": 4,
    "distil_batch": 32,
}


def test_mosaic_replays_with_a_tied_network_as_with_one_that_uses_its_matrix_twice():
    runs = [
        play(tiny_setup("mosaic", nets=(f"{__name__}:{net}",), clients=3, **MOSAIC), rounds=3)
        for net in ("tied", "untied")
    ]
    under_two, once = (next(iter(run.state.models.values())) for run in runs)
    assert under_two.keys() == once.keys()
    for name, value in once.items():
        assert torch.allclose(under_two[name], value, rtol=1e-4, atol=1e-5), name
