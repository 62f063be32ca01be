"""The meta model: shapes, symmetries, sizes of the released ones, and how its average forgets its start."""

import pytest
import torch
from torch import nn

from algorithms.core.callbacks import ignore
from algorithms.core.seeds import Seed
from algorithms.methods.mosaic.ema import Average
from algorithms.methods.mosaic.meta import Examples, MetaConfig, MetaModel, draw, meta_size, train_meta


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small_meta(experts: int = 4, classes: int = 3, **changes) -> MetaModel:
    torch.manual_seed(0)
    config = MetaConfig(meta_width=12, meta_heads=3, meta_feedforward=16, **changes)
    return MetaModel(experts, classes, config).eval()


@pytest.mark.parametrize(("experts", "classes"), [(1, 2), (3, 10), (10, 10), (7, 100)])
def test_any_number_of_experts_and_classes_gives_one_logit_a_class(experts, classes):
    model = MetaModel(experts, classes, MetaConfig(meta_width=20, meta_heads=2, meta_feedforward=16))
    assert model(torch.randn(5, experts, classes)).shape == (5, classes)


@pytest.mark.parametrize(("classes", "count"), [(10, 948_206), (100, 20_425_196)])
def test_the_released_shapes_have_the_released_number_of_parameters(classes, count):
    with torch.device("meta"):
        assert parameters(MetaModel(classes, classes, MetaConfig())) == count


def test_the_width_stays_at_that_of_100_classes_where_there_are_more():
    assert meta_size(MetaConfig(), 1000) == (1000, 100)


def test_a_width_that_is_no_multiple_of_the_heads_is_refused_by_name():
    with pytest.raises(ValueError, match="meta_width = 10: must be a multiple of meta_heads = 3"):
        meta_size(MetaConfig(meta_width=10, meta_heads=3), 10)


def test_the_order_of_the_experts_does_not_matter():
    model, logits = small_meta(), torch.randn(6, 4, 3)
    assert torch.allclose(model(logits), model(logits[:, [2, 0, 3, 1]]), atol=1e-5)


def test_the_order_of_the_experts_matters_once_each_has_an_embedding():
    model, logits = small_meta(expert_embedding=True), torch.randn(6, 4, 3)
    assert not torch.allclose(model(logits), model(logits[:, [2, 0, 3, 1]]), atol=1e-3)


def test_the_sum_over_the_experts_is_their_mean_times_their_number_before_the_last_layer():
    mean, logits = small_meta(), torch.randn(6, 4, 3)
    total = small_meta()
    total.pooling = "sum"
    bias = mean.output.bias
    assert torch.allclose(total(logits) - bias, 4 * (mean(logits) - bias), atol=1e-4)


def one_weight(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


def test_a_plain_average_of_constant_weights_keeps_its_start_by_the_power_of_its_decay():
    net = one_weight(5.0)
    average = Average(net, "plain")
    nn.init.constant_(net.weight, 2.0)
    for _ in range(7):
        average.update()
    assert average.network().weight.item() == pytest.approx(0.99**7 * 5.0 + (1 - 0.99**7) * 2.0, rel=1e-6)


def test_a_bias_corrected_average_of_constant_weights_is_these_weights():
    net = one_weight(5.0)
    average = Average(net, "bias-corrected")
    nn.init.constant_(net.weight, 2.0)
    for _ in range(7):
        average.update()
    assert average.network().weight.item() == pytest.approx(2.0, rel=1e-5)


def test_a_ramp_starts_with_a_tenth_of_the_start_and_two_elevenths_of_what_follows():
    net = one_weight(5.0)
    average = Average(net, "ramp")
    nn.init.constant_(net.weight, 2.0)
    average.update()
    first = 5.0 * 1 / 10 + 2.0 * 9 / 10
    assert average.network().weight.item() == pytest.approx(first, rel=1e-6)
    nn.init.constant_(net.weight, 1.0)
    average.update()
    assert average.network().weight.item() == pytest.approx(first * 2 / 11 + 1.0 * 9 / 11, rel=1e-6)


def test_the_averaged_network_is_in_eval_mode_and_has_no_gradients():
    averaged = Average(nn.Linear(2, 2).train(), "ramp").network()
    assert not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())


def told_by_the_second_expert(count: int = 400) -> Examples:
    """Two experts, of which the first guesses and the second knows; class 0 is rare."""
    draws = torch.Generator().manual_seed(1)
    labels = torch.where(torch.rand(count, generator=draws) < 0.05, 0, 1)
    logits = torch.randn(count, 2, 2, generator=draws)
    logits[:, 1] += 6 * nn.functional.one_hot(labels, 2)
    return Examples(logits, labels)


def trained(examples: Examples, steps: int = 120, released: tuple[str, ...] = (), **changes) -> MetaModel:
    config = MetaConfig(
        **{"meta_width": 12, "meta_heads": 3, "meta_feedforward": 16, "meta_steps": steps, "meta_lr": 5e-3, **changes}
    )
    return train_meta(examples, config, released, Seed(1), ignore)


def test_training_learns_whom_to_trust_for_rare_classes_too():
    examples = told_by_the_second_expert()
    right = trained(examples)(examples.logits).argmax(1) == examples.labels
    assert right[examples.labels == 0].float().mean() > 0.9
    assert right.float().mean() > 0.9


def test_training_repeats_to_the_bit_and_leaves_the_global_generator_alone():
    examples = told_by_the_second_expert()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = trained(examples, steps=3)
    assert torch.equal(torch.rand(1), expected)
    second = trained(examples, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_released_average_still_holds_most_of_the_random_start_after_few_steps():
    examples = told_by_the_second_expert()
    plain, ramp = trained(examples, steps=10, released=("plain_average",)), trained(examples, steps=10)
    start = trained(examples, steps=1, released=("plain_average",), meta_lr=1e-12)
    moved = [float((net.output.weight - start.output.weight).norm()) for net in (plain, ramp)]
    assert moved[0] < 0.2 * moved[1]


@pytest.mark.parametrize(("balanced", "share"), [(True, 0.5), (False, 0.05)])
def test_every_class_is_drawn_alike_unless_the_released_rule_draws_every_example_alike(balanced, share):
    labels = torch.tensor([0] * 20 + [1] * 380)
    picks = draw(labels, 400 if not balanced else 4000, balanced, Seed(1).torch("draws"))
    assert float((labels[picks] == 0).float().mean()) == pytest.approx(share, abs=0.03)
