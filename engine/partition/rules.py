"""Rules that say how many examples of each class each client gets.

Every rule returns counts, int64 (clients, classes), whose columns sum to the class sizes; which rows these are is
decided afterwards, at random. So a draw can be repeated or repaired without touching a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from algorithms.core.seeds import Seed

DRAWS = 100
"""Draws of shares in the hope of `least` examples for every client; the last draw is then `repair`."""

Rounding: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Numbers to whole numbers, as `np.rint` or `np.floor`."""

HOPELESS = 30
"""Clients with less than that in one draw: no other draw will have none, so the last is taken at once."""


def equal(total: int, clients: int) -> np.ndarray:
    """int64, (clients,): numbers that differ by at most one, the larger ones first."""
    return total // clients + (np.arange(clients) < total % clients)


def apportion(shares: np.ndarray, total: int, rounding: Rounding = np.rint) -> np.ndarray:
    """int64, (clients,): numbers in proportion to shares, which sum to `total`.

    Each client gets the part between two cumulative shares, which are rounded to whole numbers: to the nearest one,
    since rounding down leaves one example of nearly every class with the last client. Shares that are all 0 count as
    equal: numpy gives them where alpha is so large that the sum over the clients overflows.
    """
    running = np.cumsum(shares if shares.sum() > 0 else np.ones_like(shares))
    ends = rounding(running / running[-1] * total).astype(np.int64)
    return np.diff(ends, prepend=0)


def dirichlet(sizes: np.ndarray, clients: int, alpha: float, least: int, seed: Seed) -> np.ndarray:
    """Per class a Dirichlet(alpha) over the clients (Yurochkin et al., 2019, arXiv 1905.12022, experiments).

    Drawn again until every client has `least` examples, at most `DRAWS` times; the last draw may not have them. It
    also serves for quantity skew, where all examples count as of one class.
    """

    def draw(random: np.random.Generator) -> np.ndarray:
        return np.stack([apportion(random.dirichlet(np.full(clients, alpha)), int(size)) for size in sizes], axis=1)

    return _draw_enough(draw, least, seed)


def power_law(total: int, clients: int, exponent: float, seed: Seed) -> np.ndarray:
    """int64, (clients,): the client of rank r (from 1) gets r^-exponent / sum of s^-exponent over ranks s.

    Which client has which rank is drawn. Numbers of examples that follow a power law are those of Li et al. (2020,
    FedProx, arXiv 1812.06127, section 5.1); clients of high rank may get none.
    """
    ranks = 1.0 + seed.numpy("ranks").permutation(clients)
    return apportion(ranks**-exponent, total)


def log_normal(total: int, clients: int, sigma: float, least: int, seed: Seed) -> np.ndarray:
    """int64, (clients,): shares in proportion to exp(sigma z), z standard normal for each client.

    The unbalanced data of Acar et al. (2021, FedDyn, arXiv 2111.04263, section 4). Drawn again as `dirichlet`.
    """

    def draw(random: np.random.Generator) -> np.ndarray:
        exponents = random.standard_normal(clients)
        # Only proportions matter, and so the largest share may be 1: a large sigma overflows otherwise.
        return apportion(np.exp(sigma * (exponents - exponents.max())), total)[:, None]

    return _draw_enough(draw, least, seed)[:, 0]


def dirichlet_balanced(sizes: np.ndarray, clients: int, alpha: float, least: int, seed: Seed) -> np.ndarray:
    """The rule of Mosaic's code: per class a Dirichlet(alpha) over the clients that are still below their equal share.

    In the order of the classes, a client that already holds at least 1/clients of all examples has its share of the
    class set to 0, and the other shares are scaled up to the sum 1. Such shares are a Dirichlet(alpha) over the other
    clients, and are drawn as one: with a small alpha all that is left to scale up may have been rounded to 0.
    Drawn again as `dirichlet`.

    Cumulative shares are rounded down, as there. With a small alpha and as many equal classes as clients, who wins a
    class so holds one example less than its equal share, and may win another one; rounded to the nearest, it would
    hold exactly its share and get no more, and clients would be far more alike (at alpha 0.01 and 10 classes of 5,000
    the deviation of clients' sizes is 0.52 of their mean, and would be 0.43). The examples so left over go to the last
    client that is below its share; in the code to the last of all. The code's name of the rule is
    `non_iid_dirichlet_unbalanced`; its `non_iid_dirichlet_balanced` is another one.
    """

    def draw(random: np.random.Generator) -> np.ndarray:
        counts = np.zeros((clients, len(sizes)), np.int64)
        for label in np.flatnonzero(sizes):
            below = counts.sum(axis=1) * clients < sizes.sum()
            shares = random.dirichlet(np.full(np.count_nonzero(below), alpha))
            counts[below, label] = apportion(shares, int(sizes[label]), np.floor)
        return counts

    return _draw_enough(draw, least, seed)


def _draw_enough(draw: Callable[[np.random.Generator], np.ndarray], least: int, seed: Seed) -> np.ndarray:
    """The first draw in which every client has `least` examples, or the last one."""
    for number in range(DRAWS):
        counts = draw(seed.numpy("shares", number))
        short = np.count_nonzero(counts.sum(axis=1) < least)
        if short == 0:
            break
        if short >= HOPELESS:
            return draw(seed.numpy("shares", DRAWS - 1))
    return counts


def repair(counts: np.ndarray, least: int, seed: Seed) -> np.ndarray:
    """Counts in which every client has `least` examples, at the cost of the larger clients; a copy.

    Client after client, one that has too few gets them from a client drawn in proportion to what it has above `least`,
    out of one class drawn in proportion to what that client holds of it, and so on until it has enough. It ends
    because no client gives what it needs itself; there must be `least` examples for each client.
    """
    counts = counts.copy()
    held = counts.sum(axis=1)
    spare = _Tally(np.maximum(held - least, 0))
    random = seed.numpy("repair")
    for client in np.flatnonzero(held < least):
        while (lacking := least - int(held[client])) > 0:
            giver = spare.at(random.random())
            label = random.choice(counts.shape[1], p=counts[giver] / counts[giver].sum())
            moved = min(lacking, spare[giver], counts[giver, label])
            for who, gained in ((giver, -moved), (client, moved)):
                counts[who, label] += gained
                held[who] += gained
            spare.take(giver, moved)
    return counts


class _Tally:
    """Numbers that shrink, from which one is drawn in proportion without a pass over them all: by blocks, and then
    within a block. With 100,000 clients of which most must be repaired, a pass for each move takes minutes."""

    def __init__(self, numbers: np.ndarray) -> None:
        width = math.isqrt(len(numbers)) + 1
        self._blocks = np.pad(numbers, (0, -len(numbers) % width)).reshape(-1, width)
        self._sums = self._blocks.sum(axis=1)

    def __getitem__(self, index: int) -> int:
        return int(self._blocks[divmod(index, self._blocks.shape[1])])

    def at(self, share: float) -> int:
        """The index at which the running sum first exceeds this share, in [0, 1), of the whole sum."""
        ends = self._sums.cumsum()
        reached = share * ends[-1]
        block = int(ends.searchsorted(reached, side="right"))
        before = ends[block] - self._sums[block]
        within = int((before + self._blocks[block].cumsum()).searchsorted(reached, side="right"))
        return block * self._blocks.shape[1] + within

    def take(self, index: int, amount: int) -> None:
        """Make a number smaller."""
        block, within = divmod(index, self._blocks.shape[1])
        self._blocks[block, within] -= amount
        self._sums[block] -= amount


def classes(sizes: np.ndarray, clients: int, each: int, seed: Seed) -> np.ndarray:
    """`each` different classes to every client, a class in equal parts to those who hold it.

    These are the shards of McMahan et al. (2017, arXiv 1602.05629, section 3), except that a shard lies within one
    class and a client's shards are of different classes. A class is cut into shards according to its size; each client
    in turn takes one of each of the classes with most shards left, ties at random.
    """
    left = shards(sizes, clients, each)
    holds = np.zeros((clients, len(sizes)), bool)
    random = seed.numpy("classes")
    for client in range(clients):
        winners = np.lexsort((random.permutation(len(sizes)), -left))[:each]
        holds[client, winners] = True
        left[winners] -= 1
    counts = np.zeros(holds.shape, np.int64)
    for label, size in enumerate(sizes):
        holders = np.flatnonzero(holds[:, label])
        if len(holders):
            counts[holders, label] = equal(int(size), len(holders))
    return counts


def shards(sizes: np.ndarray, clients: int, each: int) -> np.ndarray:
    """int64, (classes,): into how many shards each class is cut, `clients * each` in all.

    A class has one at least and no more than there are clients or examples of it; one by one, the class with the
    largest shards gets one more. Needs as many examples as that asks for; see `engine.partition.divide`.
    """
    limits = np.minimum(sizes, clients)
    numbers = np.minimum(limits, 1)
    while numbers.sum() < clients * each:
        largest = np.where(numbers < limits, sizes / np.maximum(numbers, 1), -1.0)
        numbers[largest.argmax()] += 1
    return numbers
