"""Updates added up where the steps run, in groups whose sums have the same bits wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from actors.steps.orders import Failure, Outcome
from algorithms.core.contract import Terms, Update
from algorithms.core.states import WeightedMean

GROUP = 8
"""Clients whose updates are added up by themselves. Sums are in float64, so that a group travels as two updates do."""

TermsOf = Callable[[Update], Terms]


class Groups:
    """Means over outcomes that come in cohort order, whether added up before or not.

    Attributes:
        means: of all whole groups so far, by name.
    """

    def __init__(self, cohort: int, terms: TermsOf) -> None:
        """`cohort` clients in all."""
        self.means: dict[str, WeightedMean] = {}
        self._cohort, self._terms = cohort, terms
        self._group: dict[str, WeightedMean] = {}

    def take(self, place: int, outcome: Outcome | None) -> None:
        """The outcome of the client at a place of the cohort; None for one that is left out."""
        if outcome is not None and outcome.group is not None:
            self._group = dict(outcome.group)
        elif outcome is not None and outcome.payload is not None:
            add(self._group, self._terms(Update(outcome.client, outcome.payload)))
        if ends_group(place, self._cohort):
            for name, mean in self._group.items():
                if name in self.means:
                    self.means[name].join(mean)
                else:  # nobody else has it
                    self.means[name] = mean
            self._group = {}


def add(means: dict[str, WeightedMean], terms: Terms) -> None:
    """Add an update's terms to means by name."""
    for name, (state, weight) in terms.items():
        means.setdefault(name, WeightedMean()).add(state, weight)


def ends_group(place: int, cohort: int) -> bool:
    """Whether a place of the cohort, from 0, is the last one of its group."""
    return (place + 1) % GROUP == 0 or place + 1 == cohort


def whole_groups(clients: int) -> int:
    """The number of clients nearest to this one that fills groups; the number itself where that would be none."""
    return GROUP * round(clients / GROUP) or clients


def fold(outcomes: Sequence[Outcome | Failure], first: int, cohort: int, terms: TermsOf) -> list[Outcome | Failure]:
    """Outcomes of neighbours in the cohort, with sums in the place of the payloads of every group that is whole.

    A group with a failure stays as it is, since the client may be tried again.

    Args:
        first: place of the first one.
        cohort: clients in the cohort.
    """
    found: list[Outcome | Failure] = []
    group: list[Outcome | Failure] = []
    for place, outcome in enumerate(outcomes, start=first):
        group.append(outcome)
        if ends_group(place, cohort):
            begins = place + 1 - len(group)
            found += _sum_of(group, terms) if begins % GROUP == 0 else group
            group = []
    return [*found, *group]


def _sum_of(group: Sequence[Outcome | Failure], terms: TermsOf) -> Sequence[Outcome | Failure]:
    means: dict[str, WeightedMean] = {}
    bare: list[Outcome] = []
    for outcome in group:
        if isinstance(outcome, Failure) or outcome.payload is None:
            return group
        add(means, terms(Update(outcome.client, outcome.payload)))
        bare.append(replace(outcome, payload=None, bytes=outcome.payload.nbytes()))
    return [*bare[:-1], replace(bare[-1], group=means)]
