"""A federation before its first round: who holds what, and test examples for clients with predictors of their own."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.runner import InlineRunner
from actors.steps.orders import Outcome
from algorithms.core.payload import EMPTY
from algorithms.core.records import digest
from engine.config.loading import resolve
from engine.errors import ConfigError
from engine.partition import PartitionError
from engine.planning.checking import _labels, check
from engine.planning.federation import Federation
from engine.records import GLOBAL
from engine.run.rounds import Rounds, Schedule
from tests.algorithms.support_tasks import CASES
from tests.support import needs_of


def gathered(method="fedavg", clients=None, data=None, **partition):
    dealt = {"kind": "dirichlet", "alpha": 0.3, "clients": 4, **partition}
    return Federation.gather(
        resolve(
            {
                "method": {"name": method} if isinstance(method, str) else method,
                "data": {"source": "digits", **(data or {})},
                "partition": dealt,
                "clients": {"net": "small_cnn", "steps": 2, "batch": 16, "lr": 0.05, **(clients or {})},
                "rounds": 3,
            }
        )
    )


def from_file(path, limit=None):
    tree = {
        "method": {"name": "fedavg"},
        "data": {"source": "digits", "limit": limit},
        "partition": {"kind": "file", "path": str(path)},
        "clients": {"net": "mlp", "steps": 1, "batch": 4, "lr": 0.1},
        "rounds": 1,
    }
    return Federation.gather(resolve(tree))


def test_a_partition_file_is_taken_for_the_data_it_was_made_for_and_refused_for_other_data(tmp_path):
    made, path = gathered(), tmp_path / "partition.parquet"
    made.partition.save(path, made.dataset.fingerprint)
    assert from_file(path).partition.fingerprint == made.partition.fingerprint
    with pytest.raises(PartitionError) as caught:
        from_file(path, limit=len(made.dataset.train_labels) - 1)
    assert f"made for data with the fingerprint {made.dataset.fingerprint}, but this is " in str(caught.value)


def test_a_partition_file_of_other_origin_is_taken_for_any_data(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"row": [7, 3, 5], "client": [1, 0, 1]}), path)
    for limit in (None, 100):
        assert [rows.tolist() for rows in from_file(path, limit).partition.rows] == [[3], [5, 7]]


def test_smoothed_labels_are_refused_where_there_are_no_classes():
    federation = gathered(clients={"label_smoothing": 0.1})
    check(federation, free=2**34)
    task = replace(federation.setup.task, names=())
    without = replace(federation, setup=replace(federation.setup, task=task))
    assert [str(problem) for problem in _labels(without)] == [
        "clients.label_smoothing = 0.1: is for tasks with classes, and this one has none; leave it 0"
    ]


def test_methods_with_one_global_model_deal_no_test_examples():
    assert gathered().shards.test(0) is None


def test_test_examples_are_dealt_once_each_in_proportion_to_the_training_examples_of_their_class():
    federation = gathered("fedbn")
    counts = federation.partition.counts(federation.dataset.train_labels, 10)
    tests = [federation.shards.test(k) for k in range(4)]
    everything = np.concatenate([test.rows.numpy() for test in tests])
    assert sorted(everything.tolist()) == list(range(len(federation.dataset.test_labels)))
    for label in range(10):
        of_class = int((federation.dataset.test_labels == label).sum())
        shares = of_class * counts[:, label] / counts[:, label].sum()
        dealt = [int((test.own_labels == label).sum()) for test in tests]
        assert np.abs(np.array(dealt) - shares).max() <= 1, label


class Ledger:
    """A watcher that keeps what was sent."""

    def __init__(self):
        self.entries = []

    def step(self, round, step, done, asked): ...

    def stage(self, record): ...

    def round(self, record):
        self.entries += record.entries


def test_a_personal_method_is_evaluated_client_by_client_on_all_their_test_examples():
    federation = gathered("fedbn")
    hits = []

    class Listening(InlineRunner):
        """Notes how many of its test examples each client has right."""

        def run(self, request):
            for outcome in super().run(request):
                if request.step == "evaluate_own":
                    hits.append(outcome.metrics["accuracy"] * outcome.metrics["examples"])
                yield outcome

    runner, ledger = Listening(federation.setup, federation.shards), Ledger()
    rounds = Rounds(federation.setup, federation.needs, Schedule(1, 4, 1), runner, federation.evaluate, [ledger])
    rounds.play()
    evaluation = rounds.stages[GLOBAL]
    assert len(hits) == 4
    assert evaluation.headline == pytest.approx(sum(hits) / len(federation.dataset.test_labels))
    assert evaluation.confusion.sum() == len(federation.dataset.test_labels)
    assert not [entry for entry in ledger.entries if entry.phase == "evaluate_own"]


def own_figures(task, *sums):
    """The figures of FedBN after a round, where the evaluations of its clients give these sums."""
    case = CASES[task]
    setup = case.setup("fedbn")

    class Evaluating(InlineRunner):
        def run(self, request):
            if request.step != "evaluate_own":
                yield from super().run(request)
                return
            for client in request.clients:
                counted = {name: torch.tensor(value) for name, value in sums[client].items()}
                yield Outcome(client, EMPTY, None, {}, 0.0, sums=counted)

    rounds = Rounds(setup, needs_of(setup), Schedule(1, 3, 1), Evaluating(setup, case.shards), None, ())
    rounds.play()
    return rounds.stages[GLOBAL].figures


def test_the_error_of_personal_models_is_the_root_of_all_clients_mean_square():
    """One error of 2 and three of 0: sqrt(4 / 4) = 1, not the mean of 2, 0, 0 and 0. The last client has no test
    examples."""
    wrong = {"examples": 1, "squares": 4.0, "absolutes": 2.0, "targets": 1.0, "target_squares": 1.0}
    right = {"examples": 3, "squares": 0.0, "absolutes": 0.0, "targets": -1.0, "target_squares": 9.0}
    figures = own_figures("regression", wrong, right, {})
    assert figures["rmse"] == pytest.approx(CASES["regression"].prepared.task.std)
    assert figures["loss"] == 1
    assert figures["r2"] == pytest.approx(1 - 4 / 10)


def test_the_perplexity_of_personal_models_is_of_all_clients_tokens():
    """10 tokens of ln 2 each in one window and 30 of ln 32 in another: exp(mean) = 2^(1/4) 32^(3/4) = 16."""
    easy = {"examples": 1, "tokens": 10, "hits": 9, "nll": 10 * math.log(2)}
    hard = {"examples": 1, "tokens": 30, "hits": 1, "nll": 30 * math.log(32)}
    figures = own_figures("language", easy, {}, hard)
    assert figures["perplexity"] == pytest.approx(16)
    assert figures["accuracy"] == pytest.approx(10 / 40)


# --- Clients of several widths --------------------------------------------------------------------------------------


def played(federation, rounds=3, watchers=()):
    """All its rounds, in this process."""
    schedule = Schedule(rounds, len(federation.setup.clients), rounds)
    run = Rounds(
        federation.setup,
        federation.needs,
        schedule,
        federation.inline(),
        federation.evaluate,
        watchers,
        public=federation.public,
    )
    run.play()
    return run


def reasons(federation):
    with pytest.raises(ConfigError) as caught:
        check(federation, free=2**34)
    return [problem.reason for problem in caught.value.problems]


def test_a_width_for_all_goes_to_every_client():
    assert [c.width for c in gathered("fedrolex", {"width": 0.5}).setup.clients] == [0.5] * 4


def test_widths_drawn_in_every_round_are_the_same_on_both_sides():
    """Client k's bytes down tell the width that the server drew, those up the width that the client drew."""
    drawn = {"width": {"from": [1, 0.5, 0.25], "drawn": "every round"}}
    ledger = Ledger()
    run = played(gathered("fedrolex", drawn), watchers=[ledger])
    sent = {}
    for entry in ledger.entries:
        if (entry.phase, entry.kind) == ("train", "weights"):
            sent.setdefault((entry.round, entry.client), {})[entry.direction] = entry.bytes
    assert all(both["up"] == both["down"] for both in sent.values())
    assert len({both["up"] for both in sent.values()}) == 3
    assert len({tuple(sent[number, k]["up"] for k in range(4)) for number in range(3)}) > 1
    assert digest(run.state) == digest(played(gathered("fedrolex", drawn)).state)


def test_a_width_of_one_is_no_width_at_all():
    one, none = (digest(played(gathered("dfrd", clients), rounds=1).state) for clients in ({"width": [1, 1]}, {}))
    assert one == none


@pytest.mark.parametrize("width", [0.5, [1, 0.5], {"from": [1, 0.5], "drawn": "every round"}])
def test_a_method_that_needs_the_whole_network_refuses_narrow_clients(width):
    (reason,) = reasons(gathered("fedavg", {"width": width}))
    assert reason.startswith("gives every client the whole network, but the clients have widths")
    assert "0.5" in reason


def test_a_network_of_one_width_is_refused_where_a_client_may_come_to_have_less():
    drawn = {"net": "torchvision:resnet18", "width": {"from": [1, 0.5], "drawn": "every round"}}
    (reason,) = reasons(gathered("fedrolex", drawn))
    assert "width 0.5" in reason


# --- Images that the server owns ------------------------------------------------------------------------------------


FEDDF = {"name": "feddf", "unlabelled": "public", "steps": 2, "batch": 16}


def test_the_server_owns_the_public_rows_and_no_client_holds_one():
    federation = gathered(FEDDF, data={"public": 0.1})
    kit = played(federation, rounds=1).method.kit
    assert len(kit.public) == round(0.1 * 1297)
    dealt = {
        image.tobytes()
        for k in range(4)
        for image in federation.shards.columns["image"][federation.shards(k).rows.numpy()]
    }
    whole = gathered().shards
    assert dealt.isdisjoint(image.tobytes() for image in kit.public.columns["image"].numpy())
    assert len(federation.shards.rows) == len(whole.rows) - len(kit.public)


def test_a_method_that_does_not_ask_for_labels_gets_none():
    alike, by_accuracy = (gathered({**FEDDF, "teachers": t}, data={"public": 0.1}) for t in ("alike", "accuracy"))
    assert set(alike.public.columns["label"].tolist()) == {-1}
    assert by_accuracy.public.columns["label"].tolist() == by_accuracy.dataset.public["label"].tolist()
    assert gathered().public is None


def test_public_images_change_what_is_distilled_and_the_runs_repeat():
    noise, public = ({**FEDDF, "unlabelled": kind} for kind in ("noise", "public"))
    found = [digest(played(gathered(method, data={"public": 0.1}), rounds=1).state) for method in (noise, public)]
    assert found[0] != found[1]
    assert digest(played(gathered(public, data={"public": 0.1}), rounds=1).state) == found[1]


def test_a_method_that_needs_images_which_the_server_does_not_own_is_refused():
    (reason,) = reasons(gathered(FEDDF))
    assert reason == "feddf needs examples that the server owns: give a share of the training rows, as 0.1, or a folder"
    check(gathered(FEDDF, data={"public": 0.1}), free=2**34)


def test_labels_of_a_folder_are_not_to_be_had():
    federation = gathered({**FEDDF, "teachers": "accuracy"}, data={"public": 0.1})
    unlabelled = replace(federation, dataset=replace(federation.dataset, public={"image": np.zeros((2, 1, 8, 8))}))
    (reason,) = reasons(unlabelled)
    assert "labels, which are not looked at in a folder" in reason
    (reason,) = reasons(gathered({**FEDDF, "teachers": "accuracy"}))
    assert reason.endswith("give a share of the training rows, as 0.1")
