"""The journal: what a round had finished stands for doing it again, to the bit, and is checked before it is used."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.runner import InlineRunner, StepRequest
from actors.steps.orders import Failure, Outcome
from algorithms.core.payload import KINDS, Payload
from algorithms.core.records import digest, flatten
from algorithms.core.seeds import Seed
from engine.store.journal import Journal, worth_keeping
from engine.store.sealed import seal, unseal
from tests.support import play, tiny_setup, tiny_shards

CLIENTS = 4
SETUP = tiny_setup("tests.toys:Toy", clients=CLIENTS)
MESSAGE = Payload.of(weights={"w": torch.zeros(4)}, examples={"id": -1})


class Asked(InlineRunner):
    """An inline runner that remembers whom it asked, and how often it was asked to distil."""

    def __init__(self, setup=SETUP):
        super().__init__(setup, tiny_shards(CLIENTS))
        self.clients, self.distilled = [], 0

    def _perform(self, request, clients):
        self.clients += [(request.step, client) for client in clients]
        return super()._perform(request, clients)

    def distil(self, job, listener=None, storage=None):
        self.distilled += 1
        return {"b": torch.tensor([job]), "a": torch.tensor([2 * job])}


def journal(runner, folder, round=0, worth=lambda seconds, bytes: True):
    made = Journal(runner, folder, kinds=KINDS, worth=worth)
    made.begin(round)
    return made


def request(step="walk", clients=range(CLIENTS), round=0):
    return StepRequest(step, tuple(clients), MESSAGE, Seed(3).at(round=round))


def told(outcomes):
    """The contents of outcomes but for their time."""
    return [(o.client, digest(dict(o.payload.parts)), dict(o.metrics)) for o in outcomes]


def test_a_round_begun_anew_asks_only_those_who_had_not_finished_and_gives_the_same_bits(tmp_path):
    first, second, undisturbed = Asked(), Asked(), Asked()
    cut = journal(first, tmp_path).run(request())
    next(cut), next(cut)  # clients 0 and 1 have finished; here the process is killed
    again = told(journal(second, tmp_path).run(request()))
    assert second.clients == [("walk", 2), ("walk", 3)]
    assert again == told(undisturbed.run(request()))
    assert digest(second.memories()) == digest(undisturbed.memories())


def test_a_client_that_is_asked_twice_in_a_round_has_two_outcomes(tmp_path):
    undisturbed = Asked()
    expected = [told(undisturbed.run(request())), told(undisturbed.run(request()))]
    assert expected[0] != expected[1]  # the memory differs
    for _ in range(2):
        runner = Asked()
        kept = journal(runner, tmp_path)
        assert [told(kept.run(request())), told(kept.run(request()))] == expected
    assert runner.clients == []


def test_updates_may_be_added_up_where_a_step_is_known_not_to_be_worth_writing_down(tmp_path):
    """Of a step of which nothing is known yet, or which took long in the round before, every one comes by itself."""

    class Noting(Asked):
        def run(self, request):
            asked.append(request.terms)
            return super().run(request)

    asked, worth = [], iter([False] * 4 + [True] * 4 + [False] * 4)
    kept = journal(Noting(), tmp_path, worth=lambda seconds, bytes: next(worth))
    for round in range(3):
        kept.begin(round)
        list(kept.run(replace(request(round=round), terms="terms")))
    assert asked == ["", "terms", ""]


def test_other_rounds_know_nothing_of_it(tmp_path):
    list(journal(Asked(), tmp_path, round=0).run(request()))
    runner = Asked()
    list(journal(runner, tmp_path, round=1).run(request(round=1)))
    assert len(runner.clients) == CLIENTS


def test_what_was_cut_short_or_changed_is_done_again(tmp_path, caplog):
    list(journal(Asked(), tmp_path).run(request()))
    paths = sorted((tmp_path / "round-000000").glob("*.safetensors"))
    assert len(paths) == CLIENTS
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].write_bytes(b"")
    runner = Asked()
    assert told(journal(runner, tmp_path).run(request())) == told(Asked().run(request()))
    assert runner.clients == [("walk", 1), ("walk", 2)]
    assert "is truncated or modified; redoing that step" in caplog.text


def test_a_failure_is_not_kept(tmp_path):
    kept = journal(Asked(), tmp_path)
    kinds = [type(outcome) for outcome in kept.run(request("stumble"))]
    assert kinds == [Outcome, Outcome, Failure, Outcome]
    runner = Asked()
    list(journal(runner, tmp_path).run(request("stumble")))
    assert runner.clients == [("stumble", 2)]


def test_a_student_is_kept_with_the_order_of_its_entries(tmp_path):
    first, second = Asked(), Asked()
    kept = journal(first, tmp_path)
    students = [kept.distil(1), kept.distil(2)]
    recalled = journal(second, tmp_path)
    assert [list(s.items()) for s in (recalled.distil(1), recalled.distil(2))] == [list(s.items()) for s in students]
    assert (first.distilled, second.distilled) == (2, 0)


def test_an_unfinished_distillation_finds_its_folder_again(tmp_path):
    found = []

    class Killed(Asked):
        """Keeps one checkpoint more of a distillation each time, and does not live to finish it before the third."""

        def distil(self, job, listener, storage):
            storage.mkdir(parents=True, exist_ok=True)
            found.append(sorted(path.name for path in storage.iterdir()))
            (storage / f"checkpoint-{len(found)}").touch()
            if len(found) < 3:
                raise KeyboardInterrupt
            return super().distil(job)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            journal(Killed(), tmp_path, round=7).distil(1)
    journal(Killed(), tmp_path, round=7).distil(1)
    assert found == [[], ["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]]
    assert [path.suffix for path in (tmp_path / "round-000007").iterdir()] == [".safetensors"]


def test_rounds_are_dropped_up_to_a_checkpoint_or_all(tmp_path):
    for number in range(4):
        list(journal(Asked(), tmp_path, round=number).run(request(round=number)))
    kept = Journal(Asked(), tmp_path, kinds=KINDS)
    kept.drop(before=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002", "round-000003"]
    kept.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_changes_nothing_of_a_run(tmp_path):
    setup = tiny_setup("tests.toys:Toy", clients=CLIENTS, step="walk")
    plain = play(setup, shards=tiny_shards(CLIENTS), rounds=2)
    kept = play(setup, journal(InlineRunner(setup, tiny_shards(CLIENTS)), tmp_path), rounds=2)
    assert kept.digests == plain.digests


def test_nothing_is_written_of_short_steps(tmp_path):
    list(journal(Asked(), tmp_path, worth=worth_keeping).run(request()))
    assert list(tmp_path.rglob("*.safetensors")) == []


@given(st.floats(0, 1e4), st.integers(0, 10**10))
def test_writing_takes_a_small_part_of_the_time_it_saves(seconds, bytes):
    """At 100 MB/s and 5 ms a file."""
    if worth_keeping(seconds, bytes):
        assert bytes / 100e6 + 0.005 <= 0.06 * seconds


@pytest.mark.parametrize(
    "parts",
    [
        {"weights": {"w": torch.full((4,), float("nan"))}},
        {"weights": {"w": torch.zeros(5)}},
        {"weights": {"v": torch.zeros(4)}},
        {"code": {"w": torch.zeros(4)}},
    ],
)
def test_what_a_file_holds_is_looked_at_as_if_the_client_had_just_sent_it(tmp_path, parts):
    list(journal(Asked(), tmp_path).run(request()))
    (path,) = (p for p in sorted(tmp_path.rglob("walk-000002-*")))
    tree, _ = unseal(path)
    path.unlink()
    tensors, changed = flatten({"payload": {"parts": parts}})
    others = {name: None if name == "memory" else value for name, value in tree.items() if name != "payload"}
    seal(path.parent, "walk-000002-0", {**others, **changed}, tensors)
    runner, undisturbed = Asked(), Asked()
    assert told(journal(runner, tmp_path).run(request())) == told(undisturbed.run(request()))
    assert runner.clients == [("walk", 2)]
