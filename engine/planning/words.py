"""The plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.planning.report import Part, PlanReport
from engine.units import count_text, size


def lines(report: PlanReport) -> Iterator[str]:
    """The plan for a person."""
    asked = f"{report.cohort} of {count_text(report.clients, 'client')} in each"
    yield f"{report.method}: {count_text(report.rounds, 'round')}, {asked}"
    yield f"task: {report.task}"
    yield from (f"data: {fact}" for fact in report.data)
    yield from (f"{name}: {fact}" for name, fact in report.budget.items())
    yield f"{report.batches:g} mini-batches in a round"
    yield ""
    yield f"runner: {report.runner}"
    if report.placement:
        yield f"placement: {report.placement.kind}: {report.placement.reason}"
    yield "networks:"
    for net in report.nets:
        width = "" if net.width == 1 else f" at width {net.width:g}"
        yield f"    {net.name}{width}: {net.clients:g} clients, {net.parameters:,} parameters, {size(net.bytes)}"
    yield from _table(report.parts)
    yield from _memory_lines(report)
    yield "sent:"
    for part in report.traffic:
        amount = "depends on the data" if part.bytes is None else size(part.bytes)
        yield f"    {'to the server' if part.direction == 'up' else 'to clients'}, {part.kind}: {amount}, {part.when}"


def _table(parts: Sequence[Part]) -> Iterator[str]:
    yield f"{'processes:':<24}{'number':>8}{'CPUs each':>12}{'GPUs each':>12}{'memory each':>14}"
    for part in parts:
        shares = f"{part.cpus:g}" if part.cpus else "-", f"{part.gpus:g}" if part.gpus else "-"
        number = str(part.processes or "some")
        memory = size(part.bytes) + ("" if part.processes else ", all")
        yield f"    {part.name:<20}{number:>8}{shares[0]:>12}{shares[1]:>12}{memory:>14}"


def _memory_lines(report: PlanReport) -> Iterator[str]:
    memory = report.memory
    yield "memory, predicted:"
    for stored in report.storage:
        yield f"    of the driver's, {stored.count} {stored.name} of {size(stored.bytes)}"
    if report.placement:
        yield f"    object store: {size(memory.object_store)}"
    yield f"    total (shared memory counted once): {size(memory.together)}"
    yield f"    free on this machine: {size(memory.free)}"
