"""Checkpoints of a student: whoever goes on from one gets the bits of one that never stopped."""

import torch
from safetensors import safe_open

from actors.distillation.checkpoint import StudentCheckpoint
from actors.steps.worker import one_thread
from algorithms.core.distillation import Learner, copy_of, labelled_batch
from tests.distil_toys import toy_job, toy_net

JOB = toy_job(student=toy_net(2, dropout=0.5), steps=6, cosine=True)


def learner(steps):
    """After so many steps from the job's own student."""
    made = Learner(JOB, copy_of(JOB.student))
    for step in range(steps):
        made.step(labelled_batch(JOB, step))
    return made


def test_a_student_that_goes_on_from_a_checkpoint_has_the_bits_of_one_that_never_stopped(tmp_path):
    with one_thread():
        undisturbed, stopped, later = learner(6), learner(3), learner(0)
        StudentCheckpoint.of(stopped, stopped.student).write(tmp_path)
        StudentCheckpoint.read(tmp_path).restore(later, later.student)
        assert later.done == 3
        for step in range(3, 6):
            later.step(labelled_batch(JOB, step))
    expected = undisturbed.student.state_dict()
    assert [n for n, value in later.student.state_dict().items() if not torch.equal(value, expected[n])] == []


def test_what_is_written_is_no_pickle(tmp_path):
    made = learner(1)
    StudentCheckpoint.of(made, made.student).write(tmp_path)
    (file,) = tmp_path.iterdir()
    assert not file.read_bytes().startswith((b"PK", b"\x80"))
    with safe_open(file, framework="pt") as opened:
        assert {name.partition("/")[0] for name in opened.keys()} == {"student", "moments"}  # noqa: SIM118
