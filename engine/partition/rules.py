"""Rules that say how many examples of each class each client gets.

Every rule returns counts, int64 (clients, classes), whose columns sum to the class sizes; which rows these are is
decided afterwards, at random. So a draw can be repeated or repaired without touching a row.
"""

from __future__ import annotations

import numpy as np

from algorithms.core.seeds import Seed

DRAWS = 100
"""How often shares are drawn in the hope of `least` examples for every client; the last draw is then `repaired`."""


def equal(total: int, clients: int) -> np.ndarray:
    """int64, (clients,): numbers that differ by at most one, the larger ones first."""
    return total // clients + (np.arange(clients) < total % clients)


def cut(shares: np.ndarray, total: int) -> np.ndarray:
    """int64, (clients,): numbers in proportion to shares, which sum to `total`.

    Each client gets the part between two cumulative shares, rounded to the nearest whole number: rounding down, as is
    often seen, leaves one example of nearly every class with the last client. Shares that are all 0 count as equal:
    numpy gives them where alpha is so large that the sum over the clients overflows.
    """
    running = np.cumsum(shares if shares.sum() > 0 else np.ones_like(shares))
    ends = np.rint(running / running[-1] * total).astype(np.int64)
    return np.diff(ends, prepend=0)


def dirichlet(sizes: np.ndarray, clients: int, alpha: float, least: int, seed: Seed) -> np.ndarray:
    """Per class a Dirichlet(alpha) over the clients (Yurochkin et al., 2019, arXiv 1905.12022, experiments).

    Drawn again until every client has `least` examples, at most `DRAWS` times; the last draw may not have them. It
    also serves for quantity skew, where all examples count as of one class.
    """
    for draw in range(DRAWS):
        random = seed.numpy("shares", draw)
        counts = np.stack([cut(random.dirichlet(np.full(clients, alpha)), int(size)) for size in sizes], axis=1)
        if counts.sum(axis=1).min() >= least:
            break
    return counts


def dirichlet_balanced(sizes: np.ndarray, clients: int, alpha: float, least: int, seed: Seed) -> np.ndarray:
    """The rule of Mosaic's code: per class a Dirichlet(alpha) over the clients that are still below their equal share.

    In the order of the classes, a client that already holds at least 1/clients of all examples has its share of the
    class set to 0, and the other shares are scaled up to the sum 1. Such shares are a Dirichlet(alpha) over the other
    clients, and are drawn as one: with a small alpha all that is left to scale up may have been rounded to 0.
    Drawn again as `dirichlet`.
    """
    for draw in range(DRAWS):
        random = seed.numpy("shares", draw)
        counts = np.zeros((clients, len(sizes)), np.int64)
        for label in np.flatnonzero(sizes):
            below = counts.sum(axis=1) * clients < sizes.sum()
            shares = random.dirichlet(np.full(np.count_nonzero(below), alpha))
            counts[below, label] = cut(shares, int(sizes[label]))
        if counts.sum(axis=1).min() >= least:
            break
    return counts


def repaired(counts: np.ndarray, least: int, seed: Seed) -> np.ndarray:
    """Counts in which every client has `least` examples, at the cost of the larger clients; a copy.

    Client after client, one that has too few gets them from a client drawn in proportion to what it has above `least`,
    out of one class drawn in proportion to what that client holds of it, and so on until it has enough. It ends
    because no client gives what it needs itself; there must be `least` examples for each client.
    """
    counts = counts.copy()
    random = seed.numpy("repair")
    for client in range(len(counts)):
        while (lacking := least - int(counts[client].sum())) > 0:
            spare = np.maximum(counts.sum(axis=1) - least, 0)
            giver = random.choice(len(counts), p=spare / spare.sum())
            label = random.choice(counts.shape[1], p=counts[giver] / counts[giver].sum())
            moved = min(lacking, spare[giver], counts[giver, label])
            counts[giver, label] -= moved
            counts[client, label] += moved
    return counts


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
        taken = np.lexsort((random.permutation(len(sizes)), -left))[:each]
        holds[client, taken] = True
        left[taken] -= 1
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
