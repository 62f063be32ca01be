"""Distillation on Ray: the plain loop's bits, whoever is killed; order and bounds of the pipeline; what is refused."""

# ruff: noqa: E402 (where Ray is not installed the file is skipped before it imports what needs Ray)
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.exceptions import AuthenticationError
from ray.util.state.exception import RayStateApiException

from actors.distillation import job as distillation
from actors.distillation.job import _report_progress, describe_stall, distil_on_ray
from actors.distillation.pipeline import Stages, options, pipeline
from actors.distillation.plan import Actors, DistillationError, DistilResources
from actors.distillation.rows import Labeller, as_column, worker_batches
from actors.distillation.trainer import Feed
from actors.runner import Listener
from actors.steps.worker import one_thread
from algorithms.core.distillation import BatchCache, distil_here, generate, label
from tests.distil_toys import Noise, toy_job, toy_loss, toy_net


@pytest.fixture(autouse=True)
def single_thread():
    """As wherever the loop runs."""
    with one_thread():
        yield


def distilled(job, storage, replaced=print, **resources):
    return distil_on_ray(job, DistilResources(**resources), storage, Listener(replaced=replaced))


def wait_until_all_is_given_back():
    """For ever, that is until the test's time is over, if it is not."""
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        pass


def entries_differ(left, right):
    return [name for name in right if not torch.equal(left[name], right[name])]


@pytest.mark.slow
def test_one_train_worker_has_the_loops_bits(ray_cluster, tmp_path):
    job, heard = toy_job(student=toy_net(2, dropout=0.5)), []
    assert (
        entries_differ(distil_on_ray(job, DistilResources(), tmp_path, Listener(done=heard.append)), distil_here(job))
        == []
    )
    # What lies between depends on when it is looked at.
    assert (heard[0], heard[-1]) == (0, job.steps)
    assert heard == sorted(set(heard))


def test_progress_is_told_as_far_as_it_has_grown():
    told = []
    heard = [
        _report_progress(trained, before, told.append)
        for trained, before in [(-1, -1), (0, -1), (4, 0), (4, 4), (2, 4)]
    ]
    assert heard == [-1, 0, 4, 4, 4]
    assert told == [0, 4]


@dataclass(frozen=True)
class DeadlyNoise(Noise):
    """The toy source; the first process that draws batch 2 is killed, once."""

    note: Path = Path()

    def latents(self, index):
        if index == 2 and not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().latents(index)


class DeadlyTeacher(nn.Module):
    """The toy teacher; the first process that labels a third batch is killed."""

    def __init__(self, note: Path) -> None:
        super().__init__()
        self.net, self._note = toy_net(1), note

    def forward(self, images):
        with self._note.open("a") as file:
            file.write("batch\n")
        if len(self._note.read_text().split()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(images)


@dataclass(frozen=True)
class SixthCallFails:
    """The toy loss; it writes down who calls it, and at the sixth call of all it raises or kills its process."""

    note: Path
    deadly: bool = False

    def __call__(self, student, teacher, labels):
        with self.note.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(self.note.read_text().split()) == 6:
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("the loss has lost its way")
        return toy_loss(student, teacher, labels)

    def calls(self):
        """Calls by each process, in the order of their first calls."""
        callers = self.note.read_text().split()
        return [callers.count(pid) for pid in dict.fromkeys(callers)]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [("sampler", "train worker"), ("teacher",)], ids=" and ".join)
def test_killed_processes_cost_steps_and_change_no_bit(ray_cluster, tmp_path, killed):
    """Train workers are killed in step 6 of 9; checkpoints lie at 2 and 4, and the last one may not have been
    registered yet."""
    changes = {"steps": 9, "distinct": 4, "freeze_norm": True}
    loss = SixthCallFails(tmp_path / "train worker", deadly=True)
    deadly = {
        "sampler": {"source": DeadlyNoise(note=tmp_path / "sampler")},
        "teacher": {"teacher": DeadlyTeacher(tmp_path / "teacher")},
        "train worker": {"loss": loss},
    }
    job = toy_job(**changes)
    for kind in killed:
        job = replace(job, **deadly[kind])
    replaced = []
    student = distilled(job, tmp_path / "storage", replaced.append, checkpoint_every=2)
    assert replaced == list(killed)
    assert "train worker" not in killed or loss.calls() in ([6, 5], [6, 7])
    assert entries_differ(student, distil_here(toy_job(**changes))) == []


@pytest.mark.slow
def test_a_job_that_ended_in_an_error_goes_on_from_its_last_checkpoint(ray_cluster, tmp_path):
    """The error is in step 6 of 9, at once and not after retries."""
    loss = SixthCallFails(tmp_path / "trainer")
    job = toy_job(loss=loss, steps=9, distinct=9)
    with pytest.raises(DistillationError, match="the loss has lost its way"):
        distilled(job, tmp_path / "storage", checkpoint_every=2)
    assert loss.calls() == [6]
    student = distilled(job, tmp_path / "storage", checkpoint_every=2)
    assert loss.calls() in ([6, 5], [6, 7])
    assert entries_differ(student, distil_here(toy_job(steps=9, distinct=9))) == []


@pytest.mark.slow
def test_two_train_workers_agree_with_the_loop_up_to_rounding(ray_cluster, tmp_path):
    """Batches of nine: one worker has five rows and the other four, and both must count by rows."""
    job = toy_job()
    student = toy_net(0)
    images, _ = Noise(batch=64).inputs(Noise(batch=64).latents(100))
    student.load_state_dict(distilled(job, tmp_path, trainers=Actors(2, 0.5)))
    there = student.eval()(images)
    student.load_state_dict(distil_here(job))
    assert (there - student.eval()(images)).abs().max() < 1e-4


class Mistaken(Noise):
    def inputs(self, latents):
        raise ZeroDivisionError("the generator of client 7 has no classes")


@pytest.mark.slow
def test_a_mistake_in_a_part_of_the_job_stops_it_with_its_own_words(ray_cluster, tmp_path):
    with pytest.raises(DistillationError, match="the generator of client 7 has no classes"):
        distilled(toy_job(source=Mistaken()), tmp_path)
    wait_until_all_is_given_back()


def test_a_plan_that_cannot_run_is_refused_with_the_number_that_would_fit(ray_cluster, tmp_path):
    with pytest.raises(DistillationError, match=r"1 sampler, 1 teacher, 3 train workers would fit"):
        distilled(toy_job(), tmp_path, trainers=Actors(9, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_does_not_move_is_stopped_and_gives_everything_back(ray_cluster, tmp_path):
    with pytest.raises(DistillationError, match="nothing in the distillation has finished for 1 s"):
        distilled(toy_job(), tmp_path, patience=1)
    wait_until_all_is_given_back()


def test_the_words_for_standing_still_say_who_waits():
    assert describe_stall({}, 9, 300, ["RayTrainWorker"]) == (
        "nothing in the distillation has finished for 300 s: the train workers have not started; "
        "not started yet: RayTrainWorker"
    )
    assert describe_stall({"sampled": 4, "trained": 2}, 9, 300, []) == (
        "nothing in the distillation has finished for 300 s: "
        "2 of 9 steps are done, last batch sampled: 4, last labelled: none"
    )


@pytest.mark.parametrize(
    "error",
    [RayStateApiException("no"), ConnectionError("no"), AuthenticationError("no")],
    ids=lambda e: type(e).__name__,
)
def test_without_a_dashboard_of_the_cluster_nobody_is_named_and_nothing_fails(ray_cluster, monkeypatch, error):
    """Where it is off, Ray names the address of any other cluster's on this machine, which wants another token."""

    def refused(*_, **__):
        raise error

    monkeypatch.setattr(distillation, "list_actors", refused)
    assert distillation._actors_in("!=", "DEAD") == []


@ray.remote(num_cpus=0)
class Tally:
    """Stands for the monitor: counts what the stages tell."""

    def __init__(self):
        self._counts = {"sampled": 0, "labelled": 0}

    def note(self, what, number):
        self._counts[what] += 1

    def begin(self, kind, identity): ...

    def sampled(self):
        return self._counts["sampled"]


def settled(tally):
    """Batches sampled, once no more are for a while."""
    count, same = -1, 0
    while same < 300:
        now = ray.get(tally.sampled.remote())
        count, same = now, same + 1 if now == count else 0
    return count


@pytest.mark.slow
def test_the_pipeline_keeps_the_order_and_runs_ahead_within_its_bound(ray_cluster):
    """Batches of 1 MiB, of which 3 MiB may lie ahead; each of four actors holds another one, and one waits for it."""
    source, teacher, tally = Noise(batch=7282), toy_net(1), Tally.remote()
    resources = DistilResources(samplers=Actors(2), teachers=Actors(2), ahead_mb=3)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7, *range(10, 40)]
    batches = pipeline(order, Stages(ray.put(source), ray.put(teacher), 1, tally), resources)
    batches.context.execution_options = options(resources)
    rows = worker_batches(batches.iterator().iter_batches(batch_size=1, prefetch_batches=1))
    for number, index in enumerate(order):
        part = next(rows)
        assert part.index == index
        if number in (0, 10):
            ahead = settled(tally) - number - 1
            assert 1 <= ahead <= 3 + 2 * 4
    images, labels = generate(source, source.latents(39))
    assert torch.equal(part.batch.inputs, images)
    assert torch.equal(part.batch.labels, labels)
    assert torch.equal(part.batch.logits, label(teacher, images))


def test_rows_are_dealt_out_in_shares_and_labelled_as_one_batch():
    images, labels = generate(Noise(), Noise().latents(0))
    row = {"index": torch.tensor([7]).numpy(), "inputs": as_column(images), "labels": as_column(labels)}
    dealt = list(worker_batches(Labeller(toy_net(1), parts=2)(row)))
    assert [part.index for part in dealt] == [7, 7]
    assert [len(part.batch.labels) for part in dealt] == [5, 4]
    assert [part.share for part in dealt] == [5 / 9, 4 / 9]
    assert torch.equal(torch.cat([part.batch.inputs for part in dealt]), images)
    assert torch.equal(torch.cat([part.batch.logits for part in dealt]), label(toy_net(1), images))


def test_a_batch_too_small_to_be_dealt_out_is_refused():
    images, labels = generate(Noise(batch=1), Noise(batch=1).latents(0))
    row = {"index": torch.tensor([7]).numpy(), "inputs": as_column(images), "labels": as_column(labels)}
    with pytest.raises(ValueError, match="batch 7 has 1 inputs, too few for 2 train workers"):
        list(Labeller(toy_net(1), parts=2)(row))


@given(steps=st.integers(1, 30), data=st.data())
def test_after_a_restart_the_pipeline_gives_what_the_student_asks_for(steps, data):
    distinct = data.draw(st.integers(1, steps))
    done = data.draw(st.integers(0, steps - 1))
    asked, kept = [], BatchCache(toy_job(steps=steps, distinct=distinct))
    for step in range(done, steps):
        kept.at(step, asked.append)
    assert Feed(steps, distinct, None, None, Path()).batch_numbers(done) == asked
