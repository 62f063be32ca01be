"""Statistics of batch normalisation, measured anew."""

import pytest
import torch
from torch import nn

from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from algorithms.parts.calibration import measure_norm
from algorithms.tasks.images import ImageTask

TASK = ImageTask(names=("a", "b"), shape=(1, 1, 1), mean=(0.0,), std=(1 / 255,))
SEED = Seed(3, round=0, phase="measure", client=1)
CPU = torch.device("cpu")


def shard(*pixels):
    images = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Shard(
        {"image": images, "label": torch.zeros(len(pixels), dtype=torch.int64)}, rows=torch.arange(len(pixels))
    )


def normed():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Dropout(0.5))


def statistics(net):
    return net[1].running_mean.item(), net[1].running_var.item()


def test_one_batch_gives_its_mean_and_unbiased_variance():
    net = normed()
    assert measure_norm(net, TASK, shard(2, 4, 6), 9, SEED, CPU) == 1
    assert statistics(net) == pytest.approx((4, 4))


def test_batches_count_alike_and_what_was_there_before_does_not():
    """Batches of (2, 2) and (8, 8) whatever the order: means 2 and 8."""
    net = normed()
    net[1].running_mean.fill_(1000.0)
    assert measure_norm(net, TASK, shard(2, 2, 2, 2), 2, SEED, CPU) == 2
    assert statistics(net) == pytest.approx((2, 0))


def test_two_clients_weighted_by_their_batches_are_one_pass_over_both():
    one, other, both = normed(), normed(), normed()
    batches = [measure_norm(net, TASK, s, 9, SEED, CPU) for net, s in ((one, shard(1, 3)), (other, shard(10, 20, 30)))]
    both[1].momentum = None
    for pixels in ([1.0, 3.0], [10.0, 20.0, 30.0]):
        both(torch.tensor(pixels).view(-1, 1, 1, 1))
    pooled = [
        sum(n * s for n, s in zip(batches, pair, strict=True)) / sum(batches)
        for pair in zip(statistics(one), statistics(other), strict=True)
    ]
    assert pooled == pytest.approx(statistics(both))


def test_the_network_is_left_in_eval_mode_with_its_own_momentum():
    net = normed()
    measure_norm(net, TASK, shard(1), 9, SEED, CPU)
    assert not net.training
    assert not net[1].training
    assert net[1].momentum == 0.1
