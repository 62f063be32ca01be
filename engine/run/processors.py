"""The kinds of processors that a run computes on, which its last bits depend on unless they are portable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from clusters.bits import Bits
from engine.run.context import RunContext

Kinds: TypeAlias = Mapping[str, Sequence[str]]
"""The places that computed on each kind of processor: `driver`, machines of a cluster."""


def kinds(by_place: Mapping[str, str]) -> dict[str, list[str]]:
    """Places grouped by their kind of processor."""
    found: dict[str, list[str]] = {}
    for place, kind in by_place.items():
        found.setdefault(kind, []).append(place)
    return found


def with_processors(run: RunContext, by_place: Mapping[str, str]) -> RunContext:
    """The context with the kinds of processors that this process and its cluster have, and those the run had before.

    Where they are several, or others than before, its facts say so.
    """
    now, before = kinds(by_place), run.files.processors()
    both = merge(before, now)
    changes = dict(run.changes)
    if before and now.keys() - before.keys():
        changes["processors"] = f"{'; '.join(before)} -> {'; '.join(now)}"
    facts = {**run.facts, **_facts(both, run.config.runner.bits)}
    return replace(run, processors=both, changes=changes, facts=facts)


def merge(before: Kinds, now: Kinds) -> dict[str, list[str]]:
    """The places of both, each once."""
    return {
        kind: list(dict.fromkeys([*before.get(kind, []), *now.get(kind, [])]))
        for kind in dict.fromkeys([*before, *now])
    }


def _facts(found: Kinds, bits: Bits) -> dict[str, str]:
    if bits == "portable":
        return {"bits": "portable: the same on every x86-64 processor with AVX2"}
    if len(found) == 1:
        return {}
    words = "; ".join(f"{kind} ({', '.join(places)})" for kind, places in found.items())
    return {
        "processors": f"{len(found)} kinds in one run: {words}. They round differently, so that the digest depends on "
        "who computed what; runner.bits: portable makes it one"
    }
