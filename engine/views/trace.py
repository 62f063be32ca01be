"""A run on a time line, for Perfetto (https://ui.perfetto.dev) or speedscope: what the driver did, and each host.

The file is in Chrome's trace event format: an array of events, each with a process, a beginning and a duration in
microseconds. The driver has two lines: rounds, and phases, of which `waiting for STEP` are those in which it waits for
clients. Every host has a line of client steps; where that is empty, the host waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, TextIO

from actors.cohort.delivery import StepSpan
from actors.steps.orders import Span
from engine.records import Result, RoundRecord, RunStart, StageRecord

FILE = "profile.json"

SHORTEST = 1e-4
"""Seconds; the driver's phases that are shorter are left out, as between two answers that come at once."""

_DRIVER, _ROUNDS, _PHASES = 0, 0, 1


class Trace:
    """Hears of phases from the run's clock and of all else as a watcher, and writes `profile.json` as the run goes.

    Hosts on other machines are placed by their own clocks.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._waiting = [_process_name("driver", _DRIVER), _line("rounds", _ROUNDS), _line("phases", _PHASES)]
        self._hosts: dict[str, int] = {}
        self._ends: dict[str, list[float]] = {}
        # The clock of phases counts from a moment of its own; hosts tell the time of day.
        self._midnight = time.time() - time.perf_counter()
        self._round_began = time.perf_counter()

    def phase(self, name: str, start: float, end: float) -> None:
        """A phase of the driver, in seconds of `time.perf_counter()`."""
        if end - start >= SHORTEST:
            kind, _, step = name.partition(":")
            shown = f"waiting for {step}" if kind == "client" else name
            self._add(shown, _DRIVER, _PHASES, self._midnight + start, self._midnight + end, {})

    def started(self, start: RunStart) -> None:
        self._round_began = time.perf_counter()
        if self._file is None:  # a run that is taken up again after a loss goes on in the same file
            self._file = (start.folder / FILE).open("w", encoding="utf-8")
            self._file.write("[\n")

    def step(self, round: int, step: str, done: int, total: int) -> None:
        """Hosts tell more of it."""

    def stage(self, record: StageRecord) -> None:
        """The evaluation is a phase."""

    def round(self, record: RoundRecord) -> None:
        now = time.perf_counter()
        start, self._round_began = self._midnight + self._round_began, now
        self._add(f"round {record.round + 1}", _DRIVER, _ROUNDS, start, self._midnight + now, dict(record.metrics))
        for span in record.spans:
            self._add_step(span, record.round)
        self._write()

    def finished(self, result: Result) -> None:
        self._close()

    def failed(self, error: BaseException) -> None:
        self._close()

    def _add_step(self, step: StepSpan, round: int) -> None:
        span = step.span
        if span.host not in self._hosts:
            self._hosts[span.host] = len(self._hosts) + 1
            self._waiting.append(_process_name(f"host {span.host}", self._hosts[span.host]))
        facts = {"client": step.client, "round": round + 1}
        line = self._free_line(span)
        self._add(f"{step.phase} {step.client}", self._hosts[span.host], line, span.start, span.end, facts)

    def _free_line(self, span: Span) -> int:
        """The first of a host's lines on which nothing goes on any more: clients that are stacked take turns."""
        ends = self._ends.setdefault(span.host, [])
        line = next((n for n, end in enumerate(ends) if end <= span.start), len(ends))
        ends[line : line + 1] = [span.end]
        return line

    def _add(self, name: str, process: int, line: int, start: float, end: float, facts: Mapping[str, Any]) -> None:
        times = {"ts": round(1e6 * start), "dur": round(1e6 * (end - start))}
        self._waiting.append({"name": name, "ph": "X", "pid": process, "tid": line, **times, "args": dict(facts)})

    def _write(self) -> None:
        """Write the events since the last time, once the run has a folder."""
        if self._file is not None:
            self._file.writelines(f"{json.dumps(event)},\n" for event in self._waiting)
            self._file.flush()
            self._waiting = []

    def _close(self) -> None:
        if self._file is not None:
            self._write()
            self._file.write(json.dumps(_line("phases", _PHASES)) + "\n]\n")  # an array must not end with a comma
            self._file.close()
            self._file = None


def _process_name(name: str, process: int) -> dict[str, Any]:
    """The name of a process."""
    return {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name}}


def _line(name: str, line: int) -> dict[str, Any]:
    """The name of a line of the driver."""
    return {"name": "thread_name", "ph": "M", "pid": _DRIVER, "tid": line, "args": {"name": name}}
