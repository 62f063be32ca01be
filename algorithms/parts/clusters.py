"""Groups of points that lie together, of which each is large enough to tell little of a single point."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

LIBRARY_BYTES = 80 * 10**6
"""Memory that scikit-learn's k-means takes in a process that forms groups, measured."""


def groups(points: np.ndarray, most: int, least: int, random_state: int) -> np.ndarray | None:
    """The group of each point, int64 (n,) from 0, by k-means with the most groups that are all large enough.

    Args:
        points: float (n, d).
        most: number of groups wished for, at least 1.
        least: points a group must have, at least 1.
        random_state: of k-means, in [0, 2^32).

    Returns:
        None where all points together are fewer than `least`.
    """
    if len(points) < least:
        return None
    # Sorting the rows would take longer than k-means. Added zeros make one of 0 and -0, which are equal points.
    distinct = len({point.tobytes() for point in points + 0.0})
    for count in range(min(most, distinct, len(points) // least), 1, -1):
        found = _k_means(points, count, random_state)
        if np.bincount(found, minlength=count).min() >= least:
            return found
    return np.zeros(len(points), dtype=np.int64)


def _k_means(points: np.ndarray, count: int, random_state: int) -> np.ndarray:
    # A second and a half and `LIBRARY_BYTES`, which a host that forms no groups is spared.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Several threads add distances up in the order in which they finish, which moves the centres' last bits.
    with _pools().limit(limits=1), warnings.catch_warnings():
        # Points equal but for their last bits can leave a group empty; the caller counts.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(count, n_init=1, random_state=random_state).fit(points)
    return fitted.labels_.astype(np.int64)


@cache
def _pools() -> ThreadpoolController:
    """The thread pools of this process, for which its loaded libraries are read: as long as two k-means take."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
