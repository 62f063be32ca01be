"""Mosaic's gain over FedAvg: at equal rounds, at equal client seconds, and beside its controls, paired by seed.

    python -m benchmarks.gain run SETTING PRESETS --seeds 101,102,103 --out FILE.jsonl
    python -m benchmarks.gain table FILE.jsonl ...

SETTING is one of `digits-0.1`, `mnist-0.1`, `mnist-0.01`; PRESETS is `mosaic` or `mosaic-lean`. For each seed, in one
process with one thread:

- the preset, and two controls of it: `replay` (no teacher, no experts) and `global` (the global model alone in the
  experts' place). The three share the rounds and generators before the distillation, which do not depend on what comes
  after: they are computed once and counted in each;
- FedAvg for the preset's rounds, and on until it has cost the clients what the preset costs them.

Client seconds are CPU seconds of the clients' steps, summed over clients. `--validation 0.15` measures on training rows
held out instead of the test set; settings are chosen with it, on seeds other than those of a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.runner import InlineRunner
from engine.config import RunConfig, load
from engine.planning.federation import Federation
from engine.records import GLOBAL, RoundRecord, StageRecord
from engine.run.rounds import Rounds, Schedule

SETTINGS = {"digits-0.1": ("digits", 0.1), "mnist-0.1": ("mnist", 0.1), "mnist-0.01": ("mnist", 0.01)}
EVERY = 2
"""Rounds of FedAvg between two looks; divides the presets' rounds."""

CONTROLS = {"": {}, "-replay": {"experts": "replay"}, "-global": {"experts": "global"}}


@dataclass
class Curve:
    """A watcher that notes accuracy and client seconds after each evaluated round, and the stages' accuracies."""

    rounds: Rounds | None = None

    def __post_init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []
        self.stages: dict[str, float] = {}

    def step(self, *_: Any) -> None:
        """Ignored here."""

    def stage(self, record: StageRecord) -> None:
        """An accuracy."""
        if record.stage != GLOBAL:
            self.stages[record.stage] = record.evaluation.headline
        elif self.rounds is not None:
            self.points.append((record.round + 1, record.evaluation.headline, self.seconds))

    def round(self, record: RoundRecord) -> None:
        """Ignored here."""

    @property
    def seconds(self) -> float:
        """CPU seconds of all clients so far."""
        return sum(self.rounds.book.client_seconds.values()) if self.rounds else 0.0


def new_run(federation: Federation, rounds: int, every: int) -> tuple[Rounds, Curve, InlineRunner]:
    """A run in this process, not yet played."""
    runner, curve = federation.inline(), Curve()
    schedule = Schedule(rounds, len(federation.setup.clients), every)
    curve.rounds = Rounds(federation.setup, federation.needs, schedule, runner, federation.evaluate, [curve])
    return curve.rounds, curve, runner


def with_method(federation: Federation, **changes: Any) -> Federation:
    """The same federation under other settings of its method."""
    settings = replace(federation.setup.config, **changes)
    return replace(federation, setup=replace(federation.setup, config=settings))


def mosaic_rows(name: str, federation: Federation) -> Iterator[dict[str, Any]]:
    """Mosaic and its controls, from one common beginning."""
    total, warmup = federation.config.rounds, federation.setup.config.warmup
    common, curve, runner = new_run(federation, total, total)
    common.play(until=warmup - 1)
    for suffix, changes in CONTROLS.items():
        rounds, own, branch = new_run(with_method(federation, **changes), total, total)
        rounds.state, rounds.next = common.state, common.next
        branch.restore(runner.memories())
        rounds.play()
        number, accuracy, seconds = own.points[-1]
        spent = seconds + curve.seconds
        yield {"row": name + suffix, "rounds": number, "accuracy": accuracy, "seconds": spent, "stages": own.stages}


def fedavg_rows(federation: Federation, name: str, seconds: float) -> Iterator[dict[str, Any]]:
    """FedAvg at the preset's rounds, and at the rounds that first cost the clients `seconds`, what `name` does."""
    total = federation.config.rounds
    rounds, curve, _ = new_run(federation, 10**6, EVERY)
    rounds.play(until=total)
    number, accuracy, spent = next(point for point in curve.points if point[0] == total)
    yield {"row": "fedavg", "rounds": number, "accuracy": accuracy, "seconds": spent}
    while curve.points[-1][2] < seconds:
        rounds.play(until=rounds.next + EVERY)
    number, accuracy, spent = next(point for point in curve.points if point[2] >= seconds)
    yield {"row": f"fedavg at {name}'s seconds", "rounds": number, "accuracy": accuracy, "seconds": spent}


def measure(setting: str, family: str, seed: int, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows of one seed."""
    data, omega = SETTINGS[setting]

    def federation(preset: str) -> Federation:
        own = [*overrides, f"partition.alpha={omega}", f"seed={seed}", "runner.kind=inline"]
        config: RunConfig = load(preset, own)
        return Federation.gather(config)

    name = f"{family}-{data}"
    rows = list(mosaic_rows(name, federation(name)))
    rows += fedavg_rows(federation(f"fedavg-{data}"), name, rows[0]["seconds"])
    for row in rows:
        yield {"setting": setting, "seed": seed, **row}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: mean and standard deviation of each row, and its gain over FedAvg paired by seed."""
    for setting in sorted({row["setting"] for row in rows}):
        of = [row for row in rows if row["setting"] == setting]
        base = {row["seed"]: row["accuracy"] for row in of if row["row"] == "fedavg"}
        seeds = sorted(base)
        yield f"\n**{setting}**, seeds {', '.join(map(str, seeds))}\n"
        yield "| row | rounds | accuracy % | gain over FedAvg, points | each seed's gain | client CPU seconds |"
        yield "| --- | ---: | ---: | ---: | --- | ---: |"
        for name in dict.fromkeys(row["row"] for row in of):
            yield _line(name, {row["seed"]: row for row in of if row["row"] == name}, base)


def _line(name: str, by_seed: dict[int, dict[str, Any]], base: dict[int, float]) -> str:
    shared = [seed for seed in sorted(base) if seed in by_seed]
    accuracy = [100 * by_seed[seed]["accuracy"] for seed in shared]
    gains = [100 * (by_seed[seed]["accuracy"] - base[seed]) for seed in shared]
    seconds = statistics.mean(by_seed[seed]["seconds"] for seed in shared)
    rounds = statistics.mean(by_seed[seed]["rounds"] for seed in shared)
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    gained = f"{_spread(gains, '+')} | {each}" if name != "fedavg" else " | "
    return f"| {name} | {rounds:.0f} | {_spread(accuracy)} | {gained} | {seconds:.0f} |"


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.1f} ± {deviation:.1f}"


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("setting", choices=list(SETTINGS))
    run.add_argument("presets", choices=["mosaic", "mosaic-lean"])
    run.add_argument("--seeds", required=True)
    run.add_argument("--out", type=Path, required=True, help="lines of JSON are appended; finished seeds are left out")
    run.add_argument("--validation", type=float, default=0.0)
    run.add_argument("--set", dest="overrides", action="append", default=[])
    show = commands.add_parser("table")
    show.add_argument("files", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.command == "table":
        rows = [json.loads(line) for file in asked.files for line in file.read_text().splitlines()]
        print("\n".join(table(rows)))
        return 0
    overrides = [*asked.overrides, *([f"data.validation={asked.validation}"] if asked.validation else [])]
    done = {json.loads(line)["seed"] for line in asked.out.read_text().splitlines()} if asked.out.exists() else set()
    for seed in (int(text) for text in asked.seeds.split(",")):
        if seed in done:
            continue
        rows = list(measure(asked.setting, asked.presets, seed, overrides))
        with asked.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
