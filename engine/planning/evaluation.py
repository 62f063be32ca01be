"""Predictors on the global test set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from algorithms.core.task import ImageTask
from engine.records import Evaluation


@torch.no_grad()
def evaluate(
    predictor: nn.Module, task: ImageTask, images: np.ndarray, labels: np.ndarray, batch: int, device: torch.device
) -> Evaluation:
    """Accuracy, loss and accuracy by class of a predictor.

    Args:
        predictor: network inputs (B, C, H, W) to logits (B, classes); put in eval mode.
        images: uint8, (N, C, H, W).
        labels: int64, (N,).
        batch: images at a time.
    """
    predictor.eval()
    right = np.zeros(task.classes, dtype=np.int64)
    loss = 0.0
    for start in range(0, len(labels), batch):
        inputs = task.normalise(torch.from_numpy(images[start : start + batch]).to(device))
        truth = torch.from_numpy(labels[start : start + batch]).to(device)
        logits = predictor(inputs)
        loss += float(F.cross_entropy(logits, truth, reduction="sum"))
        hits = truth[logits.argmax(dim=1) == truth]
        right += np.bincount(hits.cpu().numpy(), minlength=task.classes)
    held = np.bincount(labels, minlength=task.classes)
    per_class = np.where(held > 0, right / np.maximum(held, 1), np.nan)
    return Evaluation(accuracy=float(right.sum() / len(labels)), loss=loss / len(labels), per_class=per_class)
