"""The rules by which clients get examples of classes, on numbers small enough to check by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.core.seeds import Seed
from engine.partition import PartitionConfig, PartitionError, divide, divide_tests, rules

SEED = Seed(0, phase="partition")


@pytest.mark.parametrize(
    ("shares", "total", "numbers"),
    [
        ([0.5, 0.25, 0.25], 4, [2, 1, 1]),
        ([0.4, 0.6], 3, [1, 2]),
        ([0.5, 0.5, 0.0], 5, [2, 3, 0]),
        ([0.0, 0.0], 4, [2, 2]),
    ],
)
def test_shares_become_whole_numbers_that_sum_to_the_total(shares, total, numbers):
    assert rules.apportion(np.array(shares), total).tolist() == numbers


def test_a_share_of_nearly_nothing_gets_nothing_even_at_the_end():
    assert rules.apportion(np.array([1 - 1e-9, 1e-9]), 1000).tolist() == [1000, 0]


def test_shares_that_are_rounded_down_leave_the_rest_to_the_last():
    """Of 10 examples the shares end at 3.7, 7.4 and 10: rounded down 3, 7 and 10, to the nearest 4, 7 and 10."""
    shares = np.array([0.37, 0.37, 0.26])
    assert rules.apportion(shares, 10, np.floor).tolist() == [3, 4, 3]
    assert rules.apportion(shares, 10).tolist() == [4, 3, 3]


@pytest.mark.parametrize("rule", [rules.dirichlet, rules.dirichlet_balanced])
@given(alpha=st.sampled_from([1e-3, 0.1, 1.0, 1e9]), clients=st.integers(1, 8), seed=st.integers(0, 50))
@settings(deadline=None)
def test_no_example_is_lost_or_made(rule, alpha, clients, seed):
    sizes = np.array([7, 0, 40, 3])
    counts = rule(sizes, clients, alpha, 1, Seed(seed))
    assert counts.min() >= 0
    assert counts.sum(axis=0).tolist() == sizes.tolist()


def test_a_large_alpha_gives_everybody_the_same_of_each_class():
    counts = rules.dirichlet(np.array([100, 50]), 5, 1e9, 1, SEED)
    assert np.abs(counts - [20, 10]).max() <= 1


def test_a_small_alpha_gives_each_class_to_one_client():
    counts = rules.dirichlet(np.array([100] * 6), 2, 1e-6, 1, SEED)
    assert (counts.max(axis=0) == 100).all()


def test_shares_are_drawn_again_until_every_client_has_the_least():
    """At alpha 1 three clients of 30 examples are all above 5 in about a quarter of the draws."""
    for seed in range(10):
        assert rules.dirichlet(np.array([30]), 3, 1.0, 5, Seed(seed)).min() >= 5


def test_a_balanced_client_that_wins_a_class_lacks_one_example_of_its_equal_share_and_may_win_another(monkeypatch):
    """Of two classes of 100 the first of two clients wins a share of 0.999 each time: floor(99.9) = 99 is less than its
    equal share of 100, so that it has a share of the second class, too. To the nearest it would have 100, and be full.
    """

    class Draws:
        def dirichlet(self, alphas):
            return np.array([0.999, 0.001]) if len(alphas) == 2 else np.array([1.0])

    monkeypatch.setattr(Seed, "numpy", lambda seed, *at: Draws())
    assert rules.dirichlet_balanced(np.array([100, 100]), 2, 0.01, 0, SEED).tolist() == [[99, 99], [1, 1]]


def official_counts(sizes, clients, alpha, random):
    """The released code of Mosaic, for one draw: shares of capped clients are 0, and cumulative shares are cut."""
    counts = np.zeros((clients, len(sizes)), int)
    for label, size in enumerate(sizes):
        shares = random.dirichlet(np.full(clients, alpha)) * (counts.sum(axis=1) < sizes.sum() / clients)
        cuts = (np.cumsum(shares / max(shares.sum(), 1e-300)) * size).astype(int)[:-1]
        counts[:, label] = [len(rows) for rows in np.split(np.arange(size), cuts)]
    return counts


def test_balanced_clients_of_equal_classes_differ_as_in_the_released_code():
    """At alpha 0.01, 10 classes of 1,000. Rounded to the nearest, sizes vary by 0.32 and clients hold 1.4 classes."""
    sizes, random = np.array([1000] * 10), np.random.default_rng(0)
    theirs = [counts for counts in (official_counts(sizes, 10, 0.01, random) for _ in range(400)) if _enough(counts)]
    ours = [rules.dirichlet_balanced(sizes, 10, 0.01, 10, Seed(seed)) for seed in range(100)]

    variations = [np.mean([counts.sum(axis=1).std() / 1000 for counts in draws]) for draws in (ours, theirs)]
    assert variations[0] == pytest.approx(variations[1], abs=0.07)
    held = [np.mean([(counts > 0).sum() / 10 for counts in draws]) for draws in (ours, theirs)]
    assert held[0] == pytest.approx(held[1], abs=0.2)


def _enough(counts):
    """Whether each client has 10 examples; the released code draws again where one has not."""
    return counts.sum(axis=1).min() >= 10


@given(st.integers(0, 1000), st.integers(2, 9), st.sampled_from([0.01, 0.1, 1.0]))
@settings(deadline=None)
def test_balanced_clients_are_below_their_equal_share_before_the_last_class_they_get(seed, clients, alpha):
    sizes = np.array([40, 25, 60, 10, 33])
    counts = rules.dirichlet_balanced(sizes, clients, alpha, 0, Seed(seed))
    for row in counts[counts.sum(axis=1) > 0]:
        last = np.flatnonzero(row)[-1]
        assert row[:last].sum() < sizes.sum() / clients


def test_repair_moves_what_is_lacking_and_no_more():
    counts = np.array([[9, 0], [0, 6], [0, 1], [0, 0]])
    mended = rules.repair(counts, 3, SEED)
    assert mended.sum(axis=1).min() == 3
    assert mended.sum(axis=0).tolist() == [9, 7]
    assert np.abs(mended - counts).sum() == 2 * (2 + 3)
    assert counts[0].tolist() == [9, 0]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(0, 9))
def test_repair_always_ends_where_there_are_enough_examples(counts, least):
    counts = np.array(counts)
    least = min(least, counts.sum() // len(counts))
    mended = rules.repair(counts, least, SEED)
    assert mended.sum(axis=1).min() >= least
    assert mended.min() >= 0
    assert mended.sum(axis=0).tolist() == counts.sum(axis=0).tolist()


def test_the_partition_says_how_many_rows_were_moved():
    """Two classes of 50 go whole to one or two clients; the others have one row each moved to them."""
    labels = np.arange(2).repeat(50)
    config = PartitionConfig(kind="dirichlet", alpha=1e-6, clients=5)
    partition = divide(config, len(labels), labels, 2, {}, Seed(0))
    assert partition.moved == 5 - len(np.flatnonzero(partition.sizes > 1))


@pytest.mark.parametrize(("rows", "least"), [(1000, 10), (100, 5), (12, 1)])
def test_balanced_clients_have_ten_examples_or_half_an_equal_share(rows, least):
    config = PartitionConfig(kind="dirichlet_balanced", alpha=1e-6, clients=10)
    for seed in range(5):
        sizes = divide(config, rows, np.zeros(rows, np.int64), 1, {}, Seed(seed)).sizes
        assert sizes.min() == least


@settings(deadline=None)
@given(
    st.lists(st.integers(5, 40), min_size=3, max_size=8),
    st.integers(1, 3),
    st.integers(3, 5),
    st.integers(0, 100),
)
def test_classes_per_client_is_exact_and_a_class_is_shared_equally(sizes, each, clients, seed):
    labels = np.arange(len(sizes)).repeat(sizes)
    config = PartitionConfig(kind="classes", classes_per_client=each, clients=clients)
    if clients * each < len(sizes):
        with pytest.raises(PartitionError, match=f"hold {clients * each} classes at most, but there are {len(sizes)}"):
            divide(config, len(labels), labels, len(sizes), {}, Seed(seed))
        return
    counts = divide(config, len(labels), labels, len(sizes), {}, Seed(seed)).counts(labels, len(sizes))
    assert (np.count_nonzero(counts, axis=1) == each).all()
    for held in counts.T:
        assert np.ptp(held[held > 0]) <= 1


def test_ten_clients_with_two_of_ten_equal_classes_are_equal():
    labels = np.arange(10).repeat(60)
    config = PartitionConfig(kind="classes", classes_per_client=2, clients=10)
    assert divide(config, len(labels), labels, 10, {}, Seed(3)).sizes.tolist() == [60] * 10


def test_a_large_class_is_cut_into_more_shards():
    assert rules.shards(np.array([100, 10]), clients=10, each=1).tolist() == [9, 1]


def test_a_class_has_no_more_shards_than_examples_or_clients():
    assert rules.shards(np.array([90, 2, 0, 90]), clients=4, each=2).tolist() == [4, 1, 0, 3]
    assert rules.shards(np.array([90, 2, 2]), clients=3, each=2).tolist() == [3, 2, 1]
    assert rules.shards(np.array([5, 2, 5]), clients=4, each=2).tolist() == [3, 2, 3]


def test_more_classes_per_client_than_there_are_is_refused():
    config = PartitionConfig(kind="classes", classes_per_client=3, clients=2)
    with pytest.raises(PartitionError, match="the data has examples of 2 classes"):
        divide(config, 4, np.array([0, 0, 3, 3]), 4, {}, Seed(0))


def test_fewer_examples_than_shards_are_refused_with_both_numbers():
    config = PartitionConfig(kind="classes", classes_per_client=2, clients=4)
    with pytest.raises(PartitionError, match="ask for 8 shards, but the examples of 2 classes make 5 at most"):
        divide(config, 5, np.array([0, 0, 0, 0, 1]), 2, {}, Seed(0))


def test_quantity_mixes_classes_at_random_and_sizes_by_alpha():
    labels = np.arange(2).repeat(500)
    even, uneven = (
        divide(PartitionConfig(kind="quantity", alpha=alpha, clients=4), 1000, labels, 2, {}, Seed(0))
        for alpha in (1e9, 0.1)
    )
    assert even.sizes.tolist() == [250] * 4
    assert uneven.sizes.max() > 400
    assert np.ptp(even.counts(labels, 2)) < 60


def test_where_many_clients_fall_short_the_last_draw_is_taken_at_once(monkeypatch):
    """At alpha 0.1 nearly all of 60 examples go to a few of 60 clients."""
    sizes, clients = np.array([60]), 60
    last = SEED.numpy("shares", rules.DRAWS - 1).dirichlet(np.full(clients, 0.1))
    drawn = []
    monkeypatch.setattr(Seed, "numpy", lambda seed, *at, numpy=Seed.numpy: drawn.append(at) or numpy(seed, *at))

    counts = rules.dirichlet(sizes, clients, 0.1, 1, SEED)

    assert counts[:, 0].tolist() == rules.apportion(last, 60).tolist()
    assert drawn == [("shares", 0), ("shares", rules.DRAWS - 1)]


@given(
    numbers=st.lists(st.integers(0, 5), min_size=1, max_size=40).filter(any),
    share=st.floats(0, 1, exclude_max=True),
    data=st.data(),
)
@settings(deadline=None)
def test_a_tally_draws_as_a_running_sum_over_all_numbers_does(numbers, share, data):
    tally = rules._Tally(np.array(numbers))
    giver = data.draw(st.sampled_from([i for i, n in enumerate(numbers) if n]))
    if sum(numbers) > 1:
        tally.take(giver, 1)
        numbers[giver] -= 1

    found = tally.at(share)

    assert sum(numbers[:found]) <= share * sum(numbers) < sum(numbers[: found + 1])
    assert [tally[i] for i in range(len(numbers))] == numbers


@given(
    total=st.integers(0, 500),
    clients=st.integers(1, 40),
    exponent=st.sampled_from([1e-9, 0.5, 1.0, 2.5, 300.0, 1e300]),
    seed=st.integers(0, 50),
)
@settings(deadline=None)
def test_numbers_of_a_power_law_sum_to_the_whole_and_are_a_permutation_of_the_law(total, clients, exponent, seed):
    """Cumulated shares are rounded, so that a number is off by less than one."""
    counts = rules.power_law(total, clients, exponent, Seed(seed))
    law = np.arange(1, clients + 1) ** -exponent
    assert counts.min() >= 0
    assert counts.sum() == total
    assert np.abs(np.sort(counts)[::-1] - total * law / law.sum()).max() <= 1


def test_a_power_law_of_exponent_one_gives_a_half_a_third_and_a_quarter_of_the_largest():
    """1 + 1/2 + 1/3 + 1/4 = 25/12, so that 250 examples make 120, 60, 40 and 30."""
    assert sorted(rules.power_law(250, 4, 1.0, SEED).tolist()) == [30, 40, 60, 120]
    largest = {int(rules.power_law(250, 4, 1.0, Seed(seed)).argmax()) for seed in range(20)}
    assert largest == {0, 1, 2, 3}


@given(
    total=st.integers(0, 500),
    clients=st.integers(1, 40),
    sigma=st.sampled_from([1e-9, 0.3, 2.0, 50.0, 1e300]),
    seed=st.integers(0, 50),
)
@settings(deadline=None)
def test_log_normal_numbers_sum_to_the_whole(total, clients, sigma, seed):
    counts = rules.log_normal(total, clients, sigma, 0, Seed(seed))
    assert counts.min() >= 0
    assert counts.sum() == total


def test_logarithms_of_log_normal_numbers_have_the_deviation_asked_for():
    """Of 2,000 clients the estimate's own deviation is sigma / sqrt(4,000), 0.008; this allows five of them."""
    counts = rules.log_normal(10**9, 2000, 0.5, 1, SEED)
    assert np.log(counts).std() == pytest.approx(0.5, abs=0.04)
    assert rules.log_normal(1000, 4, 1e-9, 1, SEED).tolist() == [250] * 4


def test_a_power_law_leaves_nobody_below_the_minimum():
    """At exponent 3 the last of 20 clients has a share of 0.0001."""
    config = PartitionConfig(kind="power_law", exponent=3.0, clients=20, min_examples=4)
    partition = divide(config, 100, None, 0, {}, Seed(0))
    assert partition.sizes.min() == 4
    assert partition.sizes.sum() == 100
    assert partition.moved > 0


def test_test_rows_without_classes_are_dealt_in_proportion_to_sizes():
    partition = divide(PartitionConfig(kind="power_law", exponent=1.0, clients=4), 250, None, 0, {}, Seed(0))
    dealt = divide_tests(partition, 25, None, None, 0, Seed(0))
    assert np.abs(np.array([len(rows) for rows in dealt]) - partition.sizes / 10).max() <= 1
    assert sorted(np.concatenate(dealt).tolist()) == list(range(25))
