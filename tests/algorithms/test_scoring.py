"""A predictor on one client's examples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from algorithms.core.scoring import score, score_each
from algorithms.core.task import Figure, Shard, add
from algorithms.tasks.images import ImageTask

TASK = ImageTask(names=("a", "b"), shape=(1, 1, 1), mean=(0.0,), std=(1 / 255,))


class Fixed(nn.Module):
    """Logits (0, log 3) for every image: class 1, with probability 3/4."""

    def forward(self, images):
        return torch.tensor([[0.0, math.log(3)]]).repeat(len(images), 1)


def shard(*labels):
    count = len(labels)
    columns = {
        "image": torch.zeros(count, 1, 1, 1, dtype=torch.uint8),
        "label": torch.tensor(labels, dtype=torch.int64),
    }
    return Shard(columns, torch.arange(count))


def report(*labels, batch=256):
    sums = score(Fixed(), TASK, shard(*labels), torch.device("cpu"), batch)
    return TASK.report(sums), sums


def test_figures_by_hand():
    """Class 1 is always predicted. Its F1 is 2 * 3 / (2 * 3 + 1), that of class 0 is 0."""
    figures, sums = report(1, 0, 1, 1)
    assert figures["accuracy"] == 3 / 4
    assert figures["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert figures["loss"] == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    assert int(sums["examples"]) == 4
    assert TASK.confusion(sums).tolist() == [[0, 1], [0, 3]]
    assert TASK.by_class(sums)["accuracy"].tolist() == [0.0, 1.0]


def test_a_class_without_examples_is_not_a_number_and_does_not_count():
    figures, sums = report(1, 1)
    assert figures["macro_f1"] == 1.0
    assert math.isnan(TASK.by_class(sums)["accuracy"][0])


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20), st.data())
def test_sums_of_two_sets_of_examples_add_up_to_those_of_both(labels, data):
    cut = data.draw(st.integers(0, len(labels)))
    (_, one), (_, other), (_, both) = report(*labels[:cut]), report(*labels[cut:]), report(*labels)
    together = add(one, other) if other else one
    assert together.keys() == both.keys()
    assert all(torch.allclose(together[name], both[name]) for name in both)


def test_more_examples_than_fit_a_batch_are_all_counted():
    figures, sums = report(*[1] * 300, *[0] * 100)
    assert (figures["accuracy"], int(sums["examples"])) == (3 / 4, 400)


def test_no_examples_have_no_figures():
    figures, _ = report()
    assert all(map(math.isnan, figures.values()))


def test_the_predictor_is_put_in_eval_mode():
    predictor = nn.Sequential(Fixed(), nn.Dropout(0.9)).train()
    assert TASK.report(score(predictor, TASK, shard(1, 1), torch.device("cpu")))["accuracy"] == 1.0


def test_figures_are_ranked_by_their_direction_and_what_is_no_number_comes_last():
    values = [2.0, math.nan, 1.0, math.inf]
    assert sorted(values, key=Figure("rmse", "lower").rank_key)[:2] == [1.0, 2.0]
    assert sorted(values, key=Figure("accuracy", "higher").rank_key)[:3] == [math.inf, 2.0, 1.0]
    assert math.isnan(sorted(values, key=Figure("accuracy", "higher").rank_key)[3])


class ByRow(nn.Module):
    """Class 1 for an image of an odd value."""

    def forward(self, images):
        assert not self.training
        odd = images[:, 0, 0, 0].round().long() % 2
        return torch.nn.functional.one_hot(odd, 2).double()


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 7), st.randoms(use_true_random=False))
def test_sums_of_each_of_several_shards_are_those_of_each_alone_whatever_the_batches(sizes, batch, random):
    count = sum(sizes) + 1
    columns = {
        "image": torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1),
        "label": torch.tensor([random.randint(0, 1) for _ in range(count)]),
    }
    rows = torch.tensor(random.sample(range(count), sum(sizes)), dtype=torch.int64)
    shards = [Shard(columns, some) for some in rows.split(sizes)] if sizes else []
    cpu = torch.device("cpu")
    together = list(score_each(ByRow(), TASK, shards, cpu, batch))
    assert len(together) == len(sizes)
    for found, shard in zip(together, shards, strict=True):
        alone = score(ByRow(), TASK, shard, cpu)
        assert found.keys() == alone.keys()
        assert all(torch.allclose(found[name].double(), value.double()) for name, value in alone.items())
