"""A run on the terminal: a line that moves, one that stays for each evaluation, a table at the end."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actors.cohort.delivery import NOBODY, FaultEntry
from actors.failures import describe
from algorithms.core.task import Figure
from engine.config.own_code import resume_command
from engine.records import GLOBAL, Evaluation, Result, RoundRecord, RunStart, StageRecord
from engine.units import count_text, difference_text, duration, figure_text, size
from engine.views.screen import Screen
from engine.views.tracking import ui_command, wanted_uri


def console(to_stderr: bool) -> Console:
    """A console on a copy of stdout or stderr, which still reaches the terminal where Ray's output is led elsewhere.

    Characters that its encoding lacks are written as escapes, and tables with ASCII where it has no lines.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        copy = os.dup(stream.fileno())
        return Console(file=os.fdopen(copy, "w", buffering=1, encoding=encoding, errors="backslashreplace"))
    except OSError:  # a stream that is no file, as in tests
        return Console(file=stream)


class Terminal:
    """A watcher that writes to a console.

    Attributes:
        screen: with the line that moves.
    """

    def __init__(self, screen: Console | Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen, self._clock = screen if isinstance(screen, Screen) else Screen(screen, clock), clock
        self._start: RunStart | None = None
        self._score = ""
        self._pace = Pace(0, clock)

    def __enter__(self) -> Terminal:
        """Show that something goes on, until the block ends."""
        self.screen.say("reading the data and starting the runner")
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()

    def started(self, start: RunStart) -> None:
        self._start = start
        self._pace = Pace(start.rounds, self._clock, start.done)
        for name, fact in start.facts.items():
            self.screen.print(f"{name}: {fact}")
        self.screen.print(f"folder: {start.folder}")
        if start.done:
            self.screen.print(f"goes on after round {start.done} of {start.rounds}")
        if start.config.get("runner", {}).get("kind") == "ray":
            self.screen.print(f"log of Ray: {start.log}")
        self.screen.say("waiting for the first client")

    def step(self, round: int, step: str, done: int, total: int) -> None:
        self._pace.step(step, done, total)
        line = self._line(round, step, done, total)
        self.screen.say(line, plain=f"{duration(self._pace.seconds_elapsed()):>8}  {line}")

    def stage(self, record: StageRecord) -> None:
        if record.stage == GLOBAL:
            self._score = self._headline_of(record.evaluation)
        self.screen.print(
            f"{duration(self._pace.seconds_elapsed()):>8}  round {self._of(record.round)}  {record.stage:<10}"
            f"  {self._figures(record.evaluation)}"
        )

    def _figures(self, evaluation: Evaluation) -> str:
        """The headline figure and the loss."""
        words = [self._headline_of(evaluation)]
        if "loss" in list(evaluation.figures)[1:]:
            words.append(f"loss {evaluation.figures['loss']:.3f}")
        return "  ".join(words)

    def _headline_of(self, evaluation: Evaluation) -> str:
        name = next(iter(evaluation.figures))
        unit = self._start.headline.unit if self._start else ""
        return f"{name} {figure_text(evaluation.headline, unit):>6}"

    def round(self, record: RoundRecord) -> None:
        for line in fault_lines(record.faults):
            self.screen.print(f"{duration(self._pace.seconds_elapsed()):>8}  round {self._of(record.round)}  {line}")
        self._pace.round()

    def note(self, text: str) -> None:
        """Write down what a person should know now."""
        self.screen.print(text)

    def finished(self, result: Result) -> None:
        self.screen.stop()
        if self._start:
            self.screen.console.print(summary(result.values, self._start))
            if result.values.get("stop"):
                self.screen.print(f"stop: {result.values['stop']['reason']}")
            self.screen.print(closing(self._start))

    def failed(self, error: BaseException) -> None:
        self.screen.stop()
        if self._start:
            self.screen.print(f"to go on with this run: {resume_command(self._start.folder, self._start.config)}")

    def _of(self, round: int) -> str:
        rounds = str(self._pace.rounds)
        return f"{round + 1:>{len(rounds)}}/{rounds}"

    def _line(self, round: int, step: str, done: int, total: int) -> str:
        parts = [f"round {self._of(round)}", f"{step} {done}/{total}"]
        if self._score:
            parts.append(self._score)
        left = self._pace.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)


class Pace:
    """An estimate of the time left, from the rounds that are done and the pace of the phase under way."""

    def __init__(self, rounds: int, clock: Callable[[], float], done: int = 0) -> None:
        """`done` of the rounds were complete before."""
        self.rounds, self._done = rounds, done
        self._clock = clock
        self._start_time = self._mark = clock()
        self._lengths: list[float] = []
        self._step: tuple[str, int, int] = ("", 0, 0)
        self._step_start, self._first = self._start_time, 0

    def step(self, name: str, done: int, total: int) -> None:
        """`done` of `total` parts of a phase are through. Its pace is taken from the last time that none was new."""
        if name != self._step[0] or done <= self._first:
            self._step_start, self._first = self._clock(), done
        self._step = (name, done, total)

    def round(self) -> None:
        """A round is over."""
        now = self._clock()
        self._lengths.append(now - self._mark)
        self._mark, self._step = now, ("", 0, 0)

    def seconds_elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start_time

    def seconds_left(self) -> float | None:
        """Seconds; None before the first round is over.

        The median round stands for those to come, because a method's rare stages (generators, distillation) make single
        rounds long; the round under way takes at least what its phase still needs at its pace so far.
        """
        if not self._lengths:
            return None
        usual = statistics.median(self._lengths)
        under_way = max(usual - (self._clock() - self._mark), self._phase_left(), 0.0)
        return under_way + usual * (self.rounds - self._done - len(self._lengths) - 1)

    def _phase_left(self) -> float:
        _, done, total = self._step
        new = done - self._first
        return (self._clock() - self._step_start) / new * (total - done) if new else 0.0


def fault_lines(faults: Sequence[FaultEntry]) -> list[str]:
    """The faults of a round, a line for each step and kind."""
    found: dict[tuple[str, str], list[int]] = {}
    for fault in faults:
        found.setdefault((fault.phase, describe(fault.fault, fault.action)), []).append(fault.client)
    return [f"{step}: {words}{_of(clients)}" for (step, words), clients in found.items()]


def _of(clients: Sequence[int]) -> str:
    """The clients of a step, as text; empty for the server's own work."""
    if NOBODY in clients:
        return f" {len(clients)} times" if len(clients) > 1 else ""
    return f": client{'s' if len(clients) > 1 else ''} {', '.join(map(str, clients))}"


def summary(values: Mapping[str, Any], start: RunStart) -> Table:
    """The result as a table of two columns."""
    played = f"{values['rounds']} of " if values["rounds"] < start.rounds else ""
    rounds = played + count_text(start.rounds, "round")
    table = Table(title=f"{start.method}, {rounds}", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    headline, *others = start.figures
    for stage, value in values["stages"].items():
        table.add_row(escape(f"{headline.name}, {stage}"), figure_text(value, headline.unit))
    for figure in others:
        if figure.name in values["figures"]:
            table.add_row(escape(figure.name), figure_text(values["figures"][figure.name], figure.unit))
    for name, value in client_lines(values.get("clients") or {}, headline):
        table.add_row(escape(name), value)
    table.add_section()
    table.add_row("to the server", size(values["bytes_up"]))
    table.add_row("to clients", size(values["bytes_down"]))
    table.add_section()
    seconds = values["seconds"]
    for name in ("total", "start", "clients", "server", "evaluate"):
        if name in seconds:
            table.add_row("seconds" if name == "total" else f"  {name}", f"{seconds[name]:.1f}")
    table.add_section()
    table.add_row("digest", str(values["digest"])[:16])
    return table


def client_lines(clients: Mapping[str, Any], headline: Figure) -> Iterator[tuple[str, str]]:
    """The headline figure over clients, as result.json has it, in words."""
    found = clients.get(headline.name)
    if found:
        yield f"mean of {count_text(found['clients'], 'client')}", figure_text(found["mean"], headline.unit)
        yield "  standard deviation", difference_text(found["spread"], headline.unit)
        yield f"  worst, client {found['worst_client']}", figure_text(found["worst"], headline.unit)


def closing(start: RunStart) -> str:
    """Hints on where to look next."""
    lines = [f"report: {start.folder / 'report.html'}", f"result: {start.folder / 'result.json'}"]
    mlflow = start.config.get("mlflow") or {}
    if mlflow.get("enabled"):
        lines.append(f"mlflow: {ui_command(wanted_uri(mlflow.get('tracking_uri'), start.folder))}")
    return "\n".join(lines)
