"""Predictors on a test set whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.tasks.images import ImageTask
from engine.planning.evaluation import evaluate

TASK = ImageTask(names=("dark", "bright", "absent"), shape=(1, 1, 1), mean=(0.0,), std=(1.0,))


class Threshold(nn.Module):
    """Says bright (logit 1 against 0) for pixels of at least one half."""

    def forward(self, images):
        bright = (images.flatten() >= 0.5).float()
        return torch.stack([1 - bright, bright, torch.zeros_like(bright)], dim=1)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_accuracy_loss_and_accuracy_by_class(batch):
    """Three of four right: one dark image is bright. A right answer costs log(e + 2) - 1, the wrong one log(e + 2)."""
    images = np.array([0, 255, 255, 200], dtype=np.uint8).reshape(4, 1, 1, 1)
    labels = np.array([0, 0, 1, 1])
    found = evaluate(Threshold(), TASK, images, labels, batch, torch.device("cpu"))
    assert found.accuracy == 0.75
    assert found.per_class[:2].tolist() == [0.5, 1.0]
    assert math.isnan(found.per_class[2])
    assert found.loss == pytest.approx(math.log(math.e + 2) - 0.75, rel=1e-6)


def test_the_predictor_is_put_in_eval_mode():
    predictor = nn.Sequential(Threshold(), nn.Dropout(0.9)).train()
    images, labels = np.full((3, 1, 1, 1), 255, dtype=np.uint8), np.ones(3, dtype=np.int64)
    assert evaluate(predictor, TASK, images, labels, 3, torch.device("cpu")).accuracy == 1.0
