"""Batch normalisation over all workers' rows. With a single worker it must be the ordinary one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from actors.distillation.norm import WholeBatchNorm, see_whole_batches


@pytest.fixture(autouse=True)
def alone(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def both(norm):
    """The norm, and a copy of it that sees whole batches."""
    twin = nn.Sequential(type(norm)(norm.num_features, norm.eps, norm.momentum, norm.affine))
    twin[0].load_state_dict(norm.state_dict())
    see_whole_batches(twin)
    assert isinstance(twin[0], WholeBatchNorm)
    return norm, twin[0]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(3), (5, 3, 4, 2)),
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm2d(3, momentum=None), (5, 3, 4, 2)),
        (nn.BatchNorm2d(3, affine=False, eps=0.1), (5, 3, 4, 2)),
    ],
)
def test_outputs_gradients_and_statistics_are_those_of_torch(norm, shape):
    draws = torch.Generator().manual_seed(0)
    plain, whole = both(norm)
    for _ in range(2):
        weights = torch.randn(shape, generator=draws)
        left = (3 + 2 * torch.randn(shape, generator=draws)).requires_grad_()
        right = left.detach().clone().requires_grad_()
        (plain(left) * weights).sum().backward()
        (whole(right) * weights).sum().backward()
        torch.testing.assert_close(plain(left), whole(right))
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-5)
    for one, other in zip(plain.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(dict(plain.named_buffers()), dict(whole.named_buffers()))


def test_in_eval_mode_it_is_the_ordinary_one():
    plain, whole = both(nn.BatchNorm2d(3))
    plain.running_mean += 1
    whole.running_mean += 1
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(images), whole.eval()(images))


def test_half_precision_comes_back_as_it_went_in():
    _, whole = both(nn.BatchNorm2d(3))
    assert whole(torch.ones(4, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_replacing_shares_parameters_and_buffers_at_any_depth():
    net = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)), nn.Linear(2, 2))
    before = {name: value.data_ptr() for name, value in net.state_dict().items()}
    see_whole_batches(net)
    assert isinstance(net[0][0], WholeBatchNorm)
    assert {name: value.data_ptr() for name, value in net.state_dict().items()} == before
