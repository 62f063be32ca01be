"""Losses of distillation and of generators, against arithmetic on probabilities."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from algorithms.methods.mosaic.student import Silent
from algorithms.parts.losses import DistillationObjective, NormGap, bhattacharyya, diversity, entropy, js, kl

entries = st.floats(-8, 8, width=32)
rows = st.lists(entries, min_size=3, max_size=3)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.log(torch.tensor(probabilities))


def pair(left: list[float], right: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([left], dtype=torch.float64), torch.tensor([right], dtype=torch.float64)


def objective(**changes) -> DistillationObjective:
    return DistillationObjective(
        **{"alpha": 0.8, "beta": 1.0, "temperature": 1.0, "divergence": "js", "label": "teacher", **changes}
    )


def test_kl_is_that_of_the_teacher_to_the_student():
    teacher, student = logits_of([0.5, 0.5]), logits_of([0.25, 0.75])
    assert kl(teacher, student).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


def test_js_of_two_disjoint_answers_is_log_2():
    sure = torch.tensor([[60.0, 0.0]])
    assert js(sure, sure.flip(1)).item() == pytest.approx(math.log(2), abs=1e-6)


@given(rows, rows)
def test_js_is_symmetric_and_between_0_and_log_2(left, right):
    p, q = pair(left, right)
    assert js(p, q).item() == pytest.approx(js(q, p).item(), abs=1e-12)
    assert -1e-12 <= js(p, q).item() <= math.log(2) + 1e-12


@given(rows, entries)
def test_js_is_0_where_the_answers_are_equal(row, shift):
    p, same = pair(row, [x + shift for x in row])
    assert js(p, same).item() == pytest.approx(0, abs=1e-9)


def test_js_is_not_0_where_the_answers_differ():
    assert js(logits_of([0.5, 0.5]), logits_of([0.4, 0.6])).item() > 1e-3


@given(rows, rows)
def test_the_released_divergence_is_the_bhattacharyya_distance(left, right):
    p, q = pair(left, right)
    middle = (p + q) / 2
    as_coded = (kl(middle, p) + kl(middle, q)) / 2
    distance = -torch.log((p.softmax(1) * q.softmax(1)).sqrt().sum(1)).mean()
    assert bhattacharyya(p, q).item() == pytest.approx(distance.item(), abs=1e-6)
    assert bhattacharyya(p, q).item() == pytest.approx(as_coded.item(), abs=1e-6)


def test_a_student_that_answers_like_its_teacher_loses_only_a_fifth_of_the_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    expected = 0.2 * F.cross_entropy(logits, torch.tensor([0, 1]))
    for divergence in ("js", "bhattacharyya"):
        loss = objective(divergence=divergence)(logits, logits, torch.tensor([2, 2]))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_label_asked_of_the_generator_can_stand_in_the_cross_entropy():
    logits, asked = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([2])
    loss = objective(label="generator")(logits, logits, asked)
    assert loss.item() == pytest.approx(0.2 * F.cross_entropy(logits, asked).item(), abs=1e-6)


def test_temperature_divides_the_logits_and_its_square_multiplies_kl():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    loss = objective(temperature=2.0, beta=0.5)(student, teacher, torch.tensor([0]))
    expected = (
        0.8 * 4 * kl(teacher / 2, student / 2)
        + 0.2 * F.cross_entropy(student, torch.tensor([1]))
        + 0.5 * js(student / 2, teacher / 2)
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_gradient_of_both_divergences_is_finite_where_teacher_and_student_are_sure_of_different_classes():
    for divergence in ("js", "bhattacharyya"):
        student = torch.tensor([[200.0, 0.0]], requires_grad=True)
        objective(divergence=divergence)(student, torch.tensor([[0.0, 200.0]]), torch.tensor([1])).backward()
        assert torch.isfinite(student.grad).all()


def test_entropy_of_an_even_answer_is_log_c_and_of_a_sure_one_0():
    assert entropy(torch.zeros(1, 4)).item() == pytest.approx(math.log(4), abs=1e-3)
    assert entropy(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0, abs=1e-4)


def test_diversity_is_minus_the_entropy_of_the_batch_mean_over_present_classes():
    logits = logits_of([0.6, 0.2, 0.2], [0.2, 0.2, 0.6])
    present = torch.tensor([True, True, False])
    q = [0.4 / 0.6, 0.2 / 0.6]
    assert diversity(logits, present).item() == pytest.approx(sum(x * math.log(x) for x in q), abs=1e-6)


def test_diversity_of_a_client_with_one_class_is_0():
    assert diversity(torch.randn(5, 3), torch.tensor([False, True, False])).item() == pytest.approx(0, abs=1e-6)


def test_diversity_is_finite_where_the_classifier_gives_a_class_no_probability_at_all():
    logits = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    loss = diversity(logits, torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_norm_gap_sums_the_distances_of_means_and_variances_over_the_layers():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([1.0, 5.0]))
    gap = NormGap(nn.Sequential(norm))
    images = torch.tensor([[[[0.0, 2.0]], [[3.0, 3.0]]]])
    with gap.watching():
        norm(images)
    means, variances = math.hypot(1 - 1, 0 - 3), math.hypot(1 - 1, 5 - 0)
    assert gap.value().item() == pytest.approx(1e-3 * (means + variances))


def test_the_norm_gap_of_a_network_without_batch_normalisation_is_0():
    net = nn.Linear(3, 2)
    gap = NormGap(net)
    with gap.watching():
        net(torch.ones(1, 3))
    assert gap.value().item() == 0


def test_the_norm_gap_stops_watching_after_its_block():
    norm = nn.BatchNorm1d(2).eval()
    gap = NormGap(norm)
    with gap.watching():
        norm(torch.ones(3, 2))
    before = gap.value().item()
    norm(torch.full((3, 2), 9.0))
    assert gap.value().item() == before


def test_a_silent_teacher_answers_zeros():
    assert torch.equal(Silent(4)(torch.ones(2, 1, 8, 8)), torch.zeros(2, 4))
