"""A predictor on one client's examples."""

import math

import pytest
import torch
from torch import nn

from algorithms.core.scoring import score
from algorithms.core.task import Shard
from algorithms.tasks.images import ImageTask

TASK = ImageTask(names=("a", "b"), shape=(1, 1, 1), mean=(0.0,), std=(1 / 255,))


class Fixed(nn.Module):
    """Logits (0, log 3) for every image: class 1, with probability 3/4."""

    def forward(self, images):
        return torch.tensor([[0.0, math.log(3)]]).repeat(len(images), 1)


def shard(*labels):
    count = len(labels)
    return Shard(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64), torch.arange(count)
    )


def test_accuracy_and_mean_loss_by_hand():
    found = score(Fixed(), TASK, shard(1, 0, 1, 1), torch.device("cpu"))
    assert found["accuracy"] == 3 / 4
    assert found["loss"] == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    assert found["examples"] == 4


def test_more_examples_than_fit_a_batch_are_all_counted():
    found = score(Fixed(), TASK, shard(*[1] * 300, *[0] * 100), torch.device("cpu"))
    assert (found["accuracy"], found["examples"]) == (3 / 4, 400)


def test_no_examples_have_no_accuracy():
    assert math.isnan(score(Fixed(), TASK, shard(), torch.device("cpu"))["accuracy"])
