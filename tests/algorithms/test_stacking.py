"""Several clients trained at once: what each would have come to alone, and nobody changes another's bits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from actors.steps.shards import ShardArrays
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.stacking import TrainingRequest, fit_together, stackable
from algorithms.core.training import OutputsObjective, Work, fit
from algorithms.nets import Classifier, Images, build
from algorithms.nets.pooling import MaxPool
from algorithms.parts.corrections import proximal
from algorithms.tasks.images import Augment
from tests.support import tiny_images, tiny_task

TASK = tiny_task()
WORK = Work(steps=7, epochs=None, batch=8, lr=0.1)
WORKS = {
    "steps": WORK,
    "epochs, of which a small client's have fewer steps": replace(WORK, steps=None, epochs=2),
    "momentum and weight decay": replace(WORK, momentum=0.9, weight_decay=0.01),
    "clipped": replace(WORK, clip=0.05),
}
SIZES = (30, 11, 24, 3, 17, 8, 1, 12, 9, 5)
"""Of clients, more than are trained at once: their last batches of an epoch differ in size (17 and 9 end with one of
nine), and so does the number of steps in an epoch."""


@pytest.fixture(scope="module")
def shards():
    pixels, labels = tiny_images()
    return ShardArrays.of({"image": pixels, "label": labels}, np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]))


def deep():
    """Four layers; no ReLU between the first two."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU())
    return Classifier(body, nn.Linear(5, TASK.classes))


@pytest.fixture(scope="module", params=["mlp", "deep"])
def net(request):
    return build("mlp", Images(TASK.shape), TASK.classes) if request.param == "mlp" else deep()


def asked(net, shards, client, correct=None, position=0, objective=None):
    parameters = [p.detach().clone() for p in net.parameters()]
    return TrainingRequest(parameters, shards(client), Seed(1, 0, "train", client), position, correct, objective)


def pull(net):
    """FedProx's correction towards the weights before training."""
    return proximal(0.5, [p.detach().clone() for p in net.parameters()])


def bits(trained):
    return [t.numpy().tobytes() for t in trained.parameters]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("corrected", [False, True])
def test_each_client_ends_where_training_alone_ends_but_for_rounding(net, shards, work, corrected):
    correct = pull(net) if corrected else None
    together = fit_together(net, TASK, work, [asked(net, shards, c, correct, position=c) for c in range(len(SIZES))])
    for client, trained in enumerate(together):
        alone = copy.deepcopy(net)
        done = fit(alone, TASK, shards(client), work, Seed(1, 0, "train", client), position=client, correct=correct)
        assert (trained.fit.steps, trained.fit.position) == (done.steps, done.position)
        assert trained.fit.loss == pytest.approx(done.loss, rel=1e-4)
        for ours, theirs in zip(trained.parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("corrected", [False, True])
def test_a_clients_bits_do_not_depend_on_who_is_trained_with_it(net, shards, work, corrected):
    correct = pull(net) if corrected else None
    everyone = [asked(net, shards, c, correct) for c in range(len(SIZES))]
    whole = [bits(one) for one in fit_together(net, TASK, work, everyone)]
    halves = [*fit_together(net, TASK, work, everyone[3:]), *fit_together(net, TASK, work, everyone[:3])]
    assert [bits(one) for one in halves] == [*whole[3:], *whole[:3]]
    assert [bits(fit_together(net, TASK, work, [one])[0]) for one in everyone] == whole
    assert [bits(one) for one in fit_together(net, TASK, work, everyone[::-1])] == whole[::-1]


def restricted(client):
    """An objective of its own for each client: other factors of the logits."""
    factors = torch.linspace(0.2, 1, TASK.classes).roll(client)
    return OutputsObjective(lambda logits, labels: TASK.loss(factors * logits, labels))


KINDS = {
    "augmented": (replace(TASK, augment=Augment(crop=1, flip=True)), lambda client: None),
    "with objectives of their own": (TASK, restricted),
    "both": (replace(TASK, augment=Augment(flip=True)), restricted),
}


@pytest.mark.parametrize(("task", "objective_of"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_augmented_clients_and_own_objectives_end_where_training_alone_ends(net, shards, work, task, objective_of):
    everyone = [asked(net, shards, c, position=c, objective=objective_of(c)) for c in range(len(SIZES))]
    together = fit_together(net, task, work, everyone)
    for client, trained in enumerate(together):
        alone = copy.deepcopy(net)
        seed, own = Seed(1, 0, "train", client), objective_of(client)
        done = fit(alone, task, shards(client), work, seed, position=client, objective=own)
        assert trained.fit.loss == pytest.approx(done.loss, rel=1e-4)
        for ours, theirs in zip(trained.parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)
    by_twos = [one for first in range(0, 10, 2) for one in fit_together(net, task, work, everyone[first : first + 2])]
    assert [bits(one) for one in by_twos] == [bits(one) for one in together]


def convolutional():
    """Two convolutions of other shapes, one of them in groups and without a bias."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        MaxPool(),
        nn.Conv2d(6, 4, (2, 3), stride=2, groups=2, bias=False),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.ReLU(),
    )
    return Classifier(body, nn.Linear(7, TASK.classes))


CONVOLUTIONAL = {"cnn2": lambda: build("cnn2", Images(TASK.shape), TASK.classes, 0.25), "groups": convolutional}


@pytest.mark.parametrize("made", CONVOLUTIONAL.values(), ids=CONVOLUTIONAL)
@pytest.mark.parametrize(("task", "objective_of"), [(TASK, lambda client: None), KINDS["both"]], ids=["plain", "both"])
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_convolutions_end_where_training_alone_ends_whoever_is_trained_beside(shards, made, work, task, objective_of):
    net = made()
    everyone = [asked(net, shards, c, position=c, objective=objective_of(c)) for c in range(len(SIZES))]
    together = fit_together(net, task, work, everyone)
    for client, trained in enumerate(together):
        alone = copy.deepcopy(net)
        seed, own = Seed(1, 0, "train", client), objective_of(client)
        done = fit(alone, task, shards(client), work, seed, position=client, objective=own)
        assert trained.fit.loss == pytest.approx(done.loss, rel=1e-4)
        for ours, theirs in zip(trained.parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-5)
    by_threes = [one for i in range(0, 10, 3) for one in fit_together(net, task, work, everyone[i : i + 3])]
    assert [bits(one) for one in by_threes] == [bits(one) for one in together]


def test_a_client_with_an_objective_changes_no_bit_of_one_without(net, shards):
    mixed = [asked(net, shards, c, objective=restricted(c) if c % 2 else None) for c in range(4)]
    alone = [bits(fit_together(net, TASK, WORK, [one])[0]) for one in mixed]
    assert [bits(one) for one in fit_together(net, TASK, WORK, mixed)] == alone


def test_a_client_that_diverges_spoils_nobody_else(net, shards):
    everyone = [asked(net, shards, c) for c in range(3)]
    before = [bits(one) for one in fit_together(net, TASK, WORK, everyone)]
    everyone[1].parameters[0].fill_(float("nan"))
    after = fit_together(net, TASK, WORK, everyone)
    assert not torch.isfinite(after[1].parameters[0]).any()
    assert [bits(after[0]), bits(after[2])] == [before[0], before[2]]


def test_the_network_that_names_the_architecture_stays_as_it_was(net, shards):
    before = [p.detach().clone() for p in net.parameters()]
    fit_together(net, TASK, WORK, [asked(net, shards, 0)])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_networks_of_linear_layers_alone_all_of_them_trained_are_stacked(net):
    assert stackable(net)
    assert not stackable(build("small_cnn", Images(TASK.shape), TASK.classes), convolutions=True)  # it has batch norm
    assert [stackable(convolutional(), convolutions) for convolutions in (False, True)] == [False, True]
    frozen = copy.deepcopy(net)
    frozen.head.bias.requires_grad_(False)
    assert not stackable(frozen)


@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(0), nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout()),
        nn.Flatten(),
    ],
    ids=str,
)
def test_networks_with_anything_else_in_them_are_not(body):
    assert not stackable(Classifier(body, nn.Linear(5, TASK.classes)))


def test_what_cannot_be_trained_together_is_refused(net, shards):
    for change in ({"optimiser": "adam"}, {"label_smoothing": 0.1}, {"schedule": RateSchedule(warmup=2)}):
        with pytest.raises(ValueError, match=f"(?s)cannot be trained together.*{next(iter(change))}="):
            fit_together(net, TASK, replace(WORK, **change), [asked(net, shards, 0)])
    with pytest.raises(ValueError, match=r"(?s)cannot be trained together.*Conv2d"):
        fit_together(build("small_cnn", Images(TASK.shape), TASK.classes), TASK, WORK, [asked(net, shards, 0)])


def test_a_tasks_loss_is_the_mean_of_its_losses_by_example():
    logits, labels = torch.randn(5, TASK.classes), torch.tensor([0, 2, 1, 1, 0])
    by_hand = torch.stack([-row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)])
    torch.testing.assert_close(TASK.losses(logits, labels), by_hand)
    torch.testing.assert_close(TASK.loss(logits, labels), by_hand.mean())
