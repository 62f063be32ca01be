"""Batch normalisation over a batch whose rows lie with several train workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """A sum over all workers, of values forward and of gradients backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def _sum_over_workers(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics, in train mode, are those of all workers' rows together.

    Mean and biased variance over N examples and positions, by two sums over the workers, through which gradients
    flow back to every worker; running variance unbiased, N / (N - 1). In eval mode the ordinary one. It stands where
    `torch.nn.SyncBatchNorm` does, which computes on GPUs alone.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (B, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        """float (B, C, ...) to the same shape and dtype."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = _sum_over_workers(values.new_tensor(float(values.numel() // values.shape[1])))
        mean = _sum_over_workers(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _sum_over_workers(centred.square().sum(axes)) / count
        self._move(mean.detach(), variance.detach() * (count / (count - 1)))
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def see_whole_batches(net: nn.Module) -> None:
    """Replace every batch normalisation inside a network by a `WholeBatchNorm` with the same parameters and buffers."""
    for name, child in net.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, WholeBatchNorm):
            setattr(net, name, _whole(child))
        else:
            see_whole_batches(child)


def _whole(norm: _BatchNorm) -> WholeBatchNorm:
    whole = WholeBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, parameter in norm.named_parameters(recurse=False):
        whole.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        whole.register_buffer(name, buffer)
    return whole
