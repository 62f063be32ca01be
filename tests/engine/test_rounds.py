"""The round loop: who is asked, when the test set is met, what watchers hear."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cohort.delivery import FaultEntry
from actors.runner import InlineRunner
from algorithms.core.contract import ClientSpec
from algorithms.core.seeds import Seed
from engine.records import Evaluation
from engine.run.rounds import Rounds, Schedule, choose
from tests.support import needs_of, tiny_setup, tiny_shards

CLIENTS = tuple(ClientSpec(id=k, net="mlp") for k in range(10))


@given(st.integers(1, 12), st.integers(0, 50))
def test_a_cohort_is_drawn_without_replacement_in_the_order_of_numbers(count, number):
    asked = [c.id for c in choose(CLIENTS, count, Seed(1, round=number))]
    assert len(asked) == min(count, 10)
    assert asked == sorted(set(asked))


def test_cohorts_differ_between_rounds_and_repeat_with_the_seed():
    drawn = [tuple(c.id for c in choose(CLIENTS, 3, Seed(1, round=n))) for n in range(20)]
    assert drawn == [tuple(c.id for c in choose(CLIENTS, 3, Seed(1, round=n))) for n in range(20)]
    assert len(set(drawn)) > 5


def test_the_last_round_is_always_evaluated():
    schedule = Schedule(rounds=7, cohort=1, every=3)
    assert [n for n in range(7) if schedule.evaluates(n)] == [2, 5, 6]


class Ear:
    """A watcher that remembers what it heard."""

    def __init__(self):
        self.heard = []
        self.faults = []

    def step(self, round, step, done, asked):
        self.heard.append(("step", round, step, done, asked))

    def stage(self, record):
        self.heard.append(("stage", record.round, record.stage))

    def round(self, record):
        self.heard.append(("round", record.round, record.clients, len(record.entries)))
        self.faults += record.faults


def played(ear, **schedule):
    setup = tiny_setup(clients=4)
    known = Evaluation({"accuracy": 0.5, "loss": 1.0}, {"accuracy": np.array([0.5, 0.5, 0.5])})
    runner = InlineRunner(setup, tiny_shards(4))
    rounds = Rounds(setup, needs_of(setup), Schedule(**schedule), runner, lambda predictor: known, [ear])
    rounds.play()
    return rounds


def test_watchers_hear_each_update_each_evaluation_and_each_round_in_order():
    ear = Ear()
    played(ear, rounds=2, cohort=4, every=2)
    steps = [[("step", n, "train", done, 4) for done in (0, 1, 2, 3, 4)] for n in range(2)]
    # Per client: weights down, weights up, examples up.
    ends = [("round", n, (0, 1, 2, 3), 4 * 3) for n in range(2)]
    assert ear.heard == [*steps[0], ends[0], *steps[1], ("stage", 1, "global"), ends[1]]


def test_a_round_asks_as_many_clients_as_the_schedule_says():
    ear = Ear()
    played(ear, rounds=3, cohort=2, every=3)
    assert [len(event[2]) for event in ear.heard if event[0] == "round"] == [2, 2, 2]


def test_watchers_hear_how_far_a_distillation_has_come():
    """The generators' round is the last: 4 steps of the student, beside what the clients and other phases tell."""
    ear = Ear()
    setup = tiny_setup("mosaic", clients=4, generator="pca", warmup=1, experts="replay", distil_steps=4, distil_batch=8)
    known = Evaluation({"accuracy": 0.5, "loss": 1.0}, {"accuracy": np.array([0.5, 0.5, 0.5])})
    Rounds(
        setup,
        needs_of(setup),
        Schedule(1, 4, 1),
        InlineRunner(setup, tiny_shards(4)),
        lambda predictor: known,
        [ear],
    ).play()
    told = [event[1:] for event in ear.heard if event[:1] == ("step",) and event[2] == "distillation"]
    assert told == [(0, "distillation", done, 4) for done in (0, 1, 2, 3, 4)]


def test_a_process_of_the_distillation_that_was_lost_and_replaced_is_written_down():
    class Losing(InlineRunner):
        def distil(self, job, listener):
            listener.replaced("train worker")
            return super().distil(job, listener)

    setup = tiny_setup("mosaic", clients=4, generator="pca", warmup=1, experts="replay", distil_steps=4, distil_batch=8)
    known = Evaluation({"accuracy": 0.5, "loss": 1.0}, {"accuracy": np.array([0.5, 0.5, 0.5])})
    ear = Ear()
    Rounds(
        setup, needs_of(setup), Schedule(1, 4, 1), Losing(setup, tiny_shards(4)), lambda predictor: known, [ear]
    ).play()
    assert ear.faults == [FaultEntry(0, "distillation", -1, "worker_lost", "retry")]


def test_watching_changes_nothing_of_the_run():
    from algorithms.core.records import digest

    seen, unseen = played(Ear(), rounds=2, cohort=4, every=1), played(Ear(), rounds=2, cohort=4, every=2)
    assert digest(seen.state) == digest(unseen.state)


def test_what_a_round_has_sent_goes_to_the_watchers_and_is_kept_no_longer():
    """4 clients get weights, and send weights and their number of examples: 12 entries a round."""
    ear = Ear()
    rounds = played(ear, rounds=3, cohort=4, every=3)
    assert [event[3] for event in ear.heard if event[0] == "round"] == [12, 12, 12]
    assert (rounds.book.entries, rounds.book.metrics, rounds.book.faults) == ([], [], [])
    assert rounds.book.bytes["up"].keys() == {"weights", "examples"}


def test_the_clock_tells_clients_from_evaluation():
    rounds = played(Ear(), rounds=1, cohort=4, every=1)
    assert {"client:train", "evaluate", "server"} <= rounds.clock.read().keys()
    assert rounds.book.client_seconds.keys() == {"train"}


def test_an_unmarked_function_is_no_step():
    from algorithms.core.payload import PayloadError

    rounds = played(Ear(), rounds=1, cohort=4, every=1)
    rounds.method.train = rounds.method.start
    rounds._schedule = Schedule(rounds=2, cohort=4, every=1)
    with pytest.raises(PayloadError, match=r"FedAvg\.start is not marked @client_side"):
        rounds.play()
