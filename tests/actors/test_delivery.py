"""The one delivery path: what is refused, what is written down, and in which order clients may be asked."""

import pytest
import torch

from actors.clock import PhaseClock
from actors.cohort.delivery import Book, Delivery, Entry, FaultEntry
from actors.failures import FailurePolicy
from actors.runner import InlineRunner
from actors.steps.orders import StepError
from algorithms.core.payload import Payload, PayloadError
from tests.support import needs_of, play, tiny_plan, tiny_setup, tiny_shards
from tests.toys import Toy

SETUP = tiny_setup("tests.toys:Toy", clients=4, nets=("mlp",))
MESSAGE = Payload.of(weights={"w": torch.zeros(4)}, examples={"id": -1})


class Listener:
    """A delivery over an inline runner, with all that it tells."""

    def __init__(self, policy=None):
        self.book, self.told = Book(), []
        self.method = Toy(SETUP.config, kit=None)
        self.delivery = Delivery(
            tiny_plan(SETUP, number=5),
            InlineRunner(SETUP, tiny_shards(4)),
            needs_of(SETUP),
            self.book,
            PhaseClock("server", now=lambda: 0.0),
            lambda *told: self.told.append(told),
            policy,
        )

    def ask(self, step, message=MESSAGE, clients=None):
        asked = None if clients is None else [SETUP.clients[c] for c in clients]
        return self.delivery.ask(getattr(self.method, step), message, asked)


def test_every_message_is_a_row_of_the_ledger_by_kind():
    listener = Listener()
    list(listener.ask("walk", clients=[2]))
    assert listener.book.entries == [
        Entry(5, "walk", 2, "down", "weights", 16),  # 4 numbers of 4 bytes
        Entry(5, "walk", 2, "down", "examples", 8),
        Entry(5, "walk", 2, "up", "weights", 16),
        Entry(5, "walk", 2, "up", "examples", 32),  # id, calls, pixels, drift
    ]


def test_metrics_are_rows_by_client_and_progress_is_told():
    listener = Listener()
    list(listener.ask("walk", clients=[0, 3]))
    assert [(m.round, m.phase, m.client, m.name) for m in listener.book.metrics] == [
        (5, "walk", 0, "noise"),
        (5, "walk", 3, "noise"),
    ]
    assert listener.told == [("walk", 0, 2), ("walk", 1, 2), ("walk", 2, 2)]


def test_a_step_without_the_mark_is_refused_by_name():
    with pytest.raises(PayloadError, match=r"Toy\.whisper is not marked @client_side"):
        Listener().ask("whisper")


def test_an_undeclared_kind_is_refused_on_its_way_down_and_up():
    with pytest.raises(PayloadError, match=r"sends logits down .client 0., which the method does not declare"):
        Listener().ask("walk", Payload.of(logits={"l": torch.zeros(1)}))
    with pytest.raises(PayloadError, match=r"sends logits up .client 0., .* declared are examples, weights"):
        list(Listener().ask("send_logits"))


def test_clients_that_still_owe_an_update_may_not_be_asked_for_another_step():
    listener = Listener()
    first = listener.ask("walk", clients=[0, 1])
    next(first)
    list(listener.ask("pid", clients=[1, 2]))
    with pytest.raises(PayloadError, match="client 1 was asked for pid before its update of walk was taken"):
        next(first)


def test_different_clients_may_be_at_different_steps():
    listener = Listener()
    walking, standing = listener.ask("walk", clients=[0, 1]), listener.ask("pid", clients=[2, 3])
    assert [u.client for pair in zip(walking, standing, strict=True) for u in pair] == [0, 2, 1, 3]


def test_updates_that_nobody_takes_are_forgotten():
    listener = Listener()
    listener.ask("walk")
    again = list(listener.ask("walk"))
    assert [u.payload.number("examples", "calls") for u in again] == [1, 1, 1, 1]


def test_each_client_receives_its_own_message_where_there_is_one_for_each():
    own = {c: Payload.of(weights={"w": torch.zeros(4)}, examples={"id": 10 * c}) for c in range(4)}
    assert [u.payload.number("examples", "id") for u in Listener().ask("walk", own)] == [0, 10, 20, 30]


def test_an_exception_in_a_step_says_who_what_when_and_where():
    setup = tiny_setup("tests.toys:Toy", clients=4, step="stumble", seed=8)
    with pytest.raises(StepError) as caught:
        play(setup, rounds=1)
    text = str(caught.value)
    for part in ("ArithmeticError: two is one too many", "step stumble", "client 2", "round 0", "seed 8", "toys.py"):
        assert part in text


def toy(step, **config):
    return tiny_setup("tests.toys:Toy", clients=4, step=step, **config)


def test_a_step_that_raised_and_is_tried_again_gives_the_same_bits(tmp_path):
    setup, policy = toy("stumble_once", file=str(tmp_path / "stumbled")), FailurePolicy(on_client_error="retry")
    stumbled, clean = play(setup, rounds=3, policy=policy), play(setup, rounds=3)
    assert stumbled.digests == clean.digests
    assert stumbled.book.entries == clean.book.entries
    assert stumbled.book.metrics == clean.book.metrics
    assert stumbled.book.faults == [FaultEntry(1, "stumble_once", 2, "client_error", "retry")]
    assert clean.book.faults == []


def test_a_step_that_raises_every_time_is_tried_as_often_as_the_policy_says_and_stops_the_run():
    listener = Listener(FailurePolicy(on_client_error="retry", max_retries=2))
    with pytest.raises(StepError, match="two is one too many"):
        list(listener.ask("stumble"))
    assert listener.book.faults == 2 * [FaultEntry(5, "stumble", 2, "client_error", "retry")]


@pytest.mark.parametrize(
    ("step", "fault", "setting"),
    [("stumble", "client_error", "on_client_error"), ("diverge", "bad_update", "on_bad_update")],
)
def test_a_client_that_is_left_out_yields_nothing_and_the_others_all_they_have(step, fault, setting):
    listener, walking = Listener(FailurePolicy(**{setting: "leave out"})), Listener()
    updates = list(listener.ask(step))
    others = [update for update in walking.ask("walk") if update.client != 2]
    assert [update.client for update in updates] == [0, 1, 3]
    assert [set(u.payload.parts) for u in updates] == [set(u.payload.parts) for u in others]
    assert [e.client for e in listener.book.entries if e.direction == "up" and e.kind == "weights"] == [0, 1, 3]
    assert listener.book.faults == [FaultEntry(5, step, 2, fault, "leave out")]
    assert listener.told[-1] == (step, 4, 4)


def test_a_client_that_is_left_out_keeps_the_memory_that_it_had():
    runner = InlineRunner(toy("walk"), tiny_shards(4))
    play(toy("walk"), runner, rounds=1)
    before = runner.memories()
    play(toy("diverge"), runner, rounds=1, policy=FailurePolicy(on_bad_update="leave out"))
    assert runner.memories()[2] == before[2]
    assert runner.memories()[1]["calls"] == 2


def test_an_update_that_cannot_be_used_stops_the_run_by_default_and_names_client_and_value():
    with pytest.raises(StepError, match=r"(?s)weights.w holds NaN or infinity in 4 of 4 entries.*client 2"):
        list(Listener().ask("diverge"))


def test_each_fault_has_a_setting_of_its_own():
    with pytest.raises(StepError, match="NaN"):
        list(Listener(FailurePolicy(on_client_error="leave out")).ask("diverge"))


def test_means_are_taken_by_a_function_that_hosts_have_too():
    listener = Listener()
    step = listener.method.walk
    means = listener.delivery.means(step, listener.method.terms, MESSAGE)
    assert means["w"].weight == len(SETUP.clients)  # one call each
    assert means["anything else"].weight == 0
    with pytest.raises(PayloadError, match="<lambda> is no function of the method"):
        listener.delivery.means(step, lambda update: {}, MESSAGE)
