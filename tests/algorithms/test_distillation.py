"""A distillation job: what is refused, what flows where, which batches come again, and what a step does."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from algorithms.core.distillation import BatchCache, Learner, copy_of, distil_here, generate, label, labelled_batch
from algorithms.core.seeds import Seed
from algorithms.nets import Classifier
from tests.distil_toys import Noise, toy_job, toy_loss, toy_net


@dataclass(frozen=True)
class Asked(Noise):
    """The toy source, writing down which batches it was asked for."""

    indices: list[int] = field(default_factory=list)

    def latents(self, index):
        self.indices.append(index)
        return super().latents(index)


def entries_differ(left, right):
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize(
    ("steps", "distinct", "said"),
    [
        (6, 0, "distinct = 0: must lie between 1 and the 6 steps"),
        (6, 7, "distinct = 7: must lie between 1 and the 6 steps"),
        (-1, 1, "steps = -1: must be at least 0"),
    ],
)
def test_a_job_whose_numbers_make_no_sense_is_refused(steps, distinct, said):
    with pytest.raises(ValueError, match=said):
        toy_job(steps=steps, distinct=distinct)


def test_each_distinct_batch_is_made_once_and_comes_again_in_turn():
    source, trained_on = Asked(), []

    def loss(student, teacher, labels):
        trained_on.append(labels)
        return toy_loss(student, teacher, labels)

    distil_here(toy_job(source=source, loss=loss, steps=7, distinct=3))
    assert source.indices == [0, 1, 2]
    expected = [Noise().latents(index)["label"] for index in (0, 1, 2, 0, 1, 2, 0)]
    assert all(torch.equal(seen, due) for seen, due in zip(trained_on, expected, strict=True))


@pytest.mark.parametrize("steps", [0, 3])
def test_every_step_is_told(monkeypatch, steps):
    monkeypatch.setattr(Learner, "_step", lambda learner, batch: 0.0)
    told = []
    distil_here(toy_job(steps=steps, distinct=1), told.append)
    assert told == list(range(1, steps + 1))


@given(steps=st.integers(1, 30), data=st.data())
def test_from_any_step_on_a_batch_is_made_once_and_kept_only_while_it_comes_again(steps, data):
    distinct = data.draw(st.integers(1, steps))
    first = data.draw(st.integers(0, steps - 1))
    made, kept = [], BatchCache(toy_job(steps=steps, distinct=distinct))

    def fresh(index):
        made.append(index)
        return index

    seen = [kept.at(step, fresh) for step in range(first, steps)]
    assert seen == [step % distinct for step in range(first, steps)]
    assert len(made) == len(set(made)) == min(distinct, steps - first)
    assert not kept._batches


def test_the_loss_gets_the_students_logits_the_teachers_and_the_asked_labels():
    calls = []

    def loss(student, teacher, labels):
        calls.append((student, teacher, labels))
        return toy_loss(student, teacher, labels)

    job = toy_job(loss=loss, steps=1, distinct=1)
    distil_here(job)
    images, labels = job.source.inputs(job.source.latents(0))
    (student, teacher, asked), *others = calls
    assert not others
    assert torch.equal(student, toy_net(2).train()(images))
    assert torch.equal(teacher, toy_net(1).eval()(images))
    assert torch.equal(asked, labels)


def test_labelling_puts_the_teacher_in_eval_mode_and_leaves_its_statistics():
    teacher = toy_net(1).train()
    before = copy_of(teacher).state_dict()
    images, _ = Noise().inputs(Noise().latents(0))
    logits = label(teacher, images)
    assert torch.equal(logits, toy_net(1).eval()(images))
    assert not logits.requires_grad
    assert entries_differ(teacher.state_dict(), before) == []


def test_images_come_contiguous_and_without_a_graph():
    class Turned(Noise):
        def inputs(self, latents):
            return torch.nn.Parameter(latents["z"]).transpose(2, 3), latents["label"]

    images, _ = generate(Turned(), Noise().latents(0))
    assert images.is_contiguous()
    assert not images.requires_grad


def test_frozen_normalisation_keeps_its_statistics():
    job = toy_job(freeze_norm=True)
    state = distil_here(job)
    changed = entries_differ(state, job.student.state_dict())
    assert changed == ["body.0.weight", "body.1.weight", "body.1.bias", "head.weight", "head.bias"]


def test_normalisation_that_is_not_frozen_moves_by_a_tenth_towards_the_batch():
    job = toy_job(steps=1, distinct=1)
    images, _ = job.source.inputs(job.source.latents(0))
    inputs = toy_net(2).body[0](images).detach()
    state = distil_here(job)
    torch.testing.assert_close(state["body.1.running_mean"], 0.1 * inputs.mean((0, 2, 3)))
    torch.testing.assert_close(state["body.1.running_var"], 0.9 + 0.1 * inputs.var((0, 2, 3)))
    assert state["body.1.num_batches_tracked"] == 1


def test_the_first_step_is_adams():
    """With both moments bias-corrected, Adam's first step is -lr g / (|g| + 1e-8)."""
    student = Classifier(nn.Flatten(), nn.Linear(36, 3))
    job = toy_job(student=student, steps=1, distinct=1, lr=0.25)
    batch = labelled_batch(job, 0)
    toy_loss(student(batch.inputs), batch.logits, batch.labels).backward()
    gradient = student.head.weight.grad
    expected = student.head.weight - 0.25 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(distil_here(job)["head.weight"], expected.detach())


def test_the_jobs_own_student_is_not_changed():
    job = toy_job()
    distil_here(job)
    assert entries_differ(job.student.state_dict(), toy_net(2).state_dict()) == []


def test_no_steps_give_the_student_back():
    job = toy_job(steps=0, distinct=1)
    assert entries_differ(distil_here(job), job.student.state_dict()) == []


def test_a_learner_that_goes_on_where_another_stopped_makes_the_same_steps_dropout_included():
    job = toy_job(student=toy_net(2, dropout=0.5))
    whole = distil_here(job)
    first = Learner(job, copy_of(job.student))
    for step in range(3):
        first.step(labelled_batch(job, step))
    torch.manual_seed(99)
    second = Learner(job, copy_of(first.student))
    second.optimiser.load_state_dict(first.optimiser.state_dict())
    second.done = first.done
    for step in range(3, 6):
        second.step(labelled_batch(job, step))
    assert entries_differ(second.student.state_dict(), whole) == []


def test_the_seed_decides_on_dropout_and_global_draws_do_not():
    job = toy_job(student=toy_net(2, dropout=0.5))
    torch.manual_seed(1)
    state = distil_here(job)
    torch.manual_seed(2)
    following = torch.rand(3)
    torch.manual_seed(2)
    assert entries_differ(distil_here(job), state) == []
    assert torch.equal(torch.rand(3), following)
    assert "body.0.weight" in entries_differ(distil_here(replace(job, seed=Seed(1))), state)


def test_every_step_draws_its_own_dropout():
    job = toy_job(student=toy_net(2, dropout=0.5))
    states = []
    for number in (0, 1):
        learner = Learner(job, copy_of(job.student))
        learner.done = number
        learner.step(labelled_batch(job, 0))
        states.append(learner.student.state_dict())
    assert "body.0.weight" in entries_differ(*states)


def test_bfloat16_rounds_the_students_logits_and_hands_the_loss_float32():
    calls = []

    def loss(student, teacher, labels):
        calls.append(student.detach())
        return toy_loss(student, teacher, labels)

    student = Classifier(nn.Flatten(), nn.Linear(36, 3))
    job = toy_job(student=student, loss=loss, steps=1, distinct=1, precision="bfloat16")
    state = distil_here(job)
    images, _ = job.source.inputs(job.source.latents(0))
    assert calls[0].dtype == torch.float32
    assert torch.equal(calls[0], calls[0].bfloat16().float())
    torch.testing.assert_close(calls[0], student(images), rtol=0.05, atol=0.05)
    assert not torch.equal(calls[0], student(images))
    assert state["head.weight"].dtype == torch.float32
