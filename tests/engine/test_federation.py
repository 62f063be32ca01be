"""A federation before its first round: who holds what, and test examples for clients with predictors of their own."""

import numpy as np
import pytest

from actors.runner import InlineRunner
from engine.config.loading import resolve
from engine.federation import Federation
from engine.rounds import GLOBAL, Rounds, Schedule


def gathered(method="fedavg", **partition):
    dealt = {"kind": "dirichlet", "alpha": 0.3, "clients": 4, **partition}
    return Federation.gather(
        resolve(
            {
                "method": {"name": method},
                "data": {"source": "digits"},
                "partition": dealt,
                "clients": {"net": "small_cnn", "steps": 2, "batch": 16, "lr": 0.05},
                "rounds": 1,
            }
        )
    )


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


def test_a_personal_method_is_evaluated_client_by_client_and_weighted_by_examples():
    federation = gathered("fedbn")

    class Known(InlineRunner):
        """Client k is right on the share k / 10 of its test examples."""

        def run(self, errand):
            for outcome in super().run(errand):
                if errand.step == "evaluate_own":
                    object.__setattr__(outcome, "metrics", {**outcome.metrics, "accuracy": outcome.client / 10})
                yield outcome

    runner = Known(federation.casting, federation.shards)
    rounds = Rounds(federation.casting, Schedule(1, 4, 1), runner, federation.evaluate, [])
    rounds.play()
    sizes = [len(federation.shards.test(k)) for k in range(4)]
    expected = sum(k / 10 * n for k, n in enumerate(sizes)) / sum(sizes)
    assert rounds.stages[GLOBAL].accuracy == pytest.approx(expected)
    assert not [entry for entry in rounds.book.entries if entry.phase == "evaluate_own"]
