"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

OWN_PROCESS = "own process"
"""Tells commands of `tessera` that they may start their process anew; callers in Python do not say so."""

SHOW_CURSOR = "\033[?25h"
"""Escape sequence that shows the cursor (DEC private mode 25)."""


class Commands(click.Group):
    """Tells a user's mistakes (exit code 2, no traceback) from ours (exit code 1, the whole traceback)."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # A terminal's encoding may lack what stands in names and tables; that must not end a run.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _second_interrupt_ends():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            click.echo("stopped", err=True)
            ctx.exit(143 if isinstance(interrupt, TerminationRequest) else 130)
        except Exception as error:
            _restart_for_bits(error, ctx)
            code = _exit_code(error)
            if code is None:
                raise
            click.echo(str(error), err=True)
            ctx.exit(code)


def _restart_for_bits(error: Exception, ctx: click.Context) -> None:
    """Start the command anew where it needs another environment, and where it has this process for itself."""
    from clusters.bits import ProcessStartError, restart

    if isinstance(error, ProcessStartError) and ctx.obj == OWN_PROCESS:
        restart()


class TerminationRequest(KeyboardInterrupt):
    """SIGTERM, by which batch systems and containers stop a process; it ends a command as Ctrl-C does."""


_INTERRUPTS: Mapping[signal.Signals, tuple[type[KeyboardInterrupt], Any]] = {
    signal.SIGINT: (KeyboardInterrupt, signal.default_int_handler),
    signal.SIGTERM: (TerminationRequest, signal.SIG_DFL),
}
"""The exception that each signal raises here, and Python's own handler of it."""


@contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """A block in which the first Ctrl-C or SIGTERM stops in good order, and the second is left to the kernel, which
    ends us. What others have set is left alone."""
    ours = [number for number, (_, usual) in _INTERRUPTS.items() if signal.getsignal(number) is usual]
    if threading.current_thread() is not threading.main_thread():
        ours = []

    def first(number: int, _: object) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)  # which a moving line had hidden
        click.echo("stopping; once more to end at once", err=True)
        raise _INTERRUPTS[signal.Signals(number)][0]

    for number in ours:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _INTERRUPTS[number][1])


def _exit_code(error: Exception) -> int | None:
    """2 for a mistake of the user's, 1 for a failure that says itself what it was, None for an error of ours."""
    from actors.distillation.plan import DistillationError
    from actors.hosts.dispatch import HostLostError
    from actors.runner import MemoryLostError
    from actors.steps.orders import StepError
    from engine.errors import NoRoom, mistakes

    if isinstance(error, mistakes()):
        return 2
    return 1 if isinstance(error, StepError | HostLostError | MemoryLostError | DistillationError | NoRoom) else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tessera-fl", prog_name="tessera")
def cli() -> None:
    """Federated learning over heterogeneous clients, simulated on Ray."""


_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one key, as partition.alpha=0.01; repeatable.",
)


def _configuration_options(command: Command) -> Command:
    """The argument and the option of every command that takes a configuration."""
    return click.argument("configuration", metavar="PRESET|FILE")(_overrides(command))


_code = click.option(
    "--code",
    multiple=True,
    metavar="MODULE",
    help="Module of your own that the run's folder names; no other is imported. Repeatable.",
)

_client = click.option("--client", type=int, help="Whose model, where a run's clients have models of their own.")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@cli.command()
@_configuration_options
@click.option(
    "--out",
    metavar="FOLDER|URI",
    help="The run's folder, new or empty; or a URI that fsspec knows, to which it is copied at the end (MLflow is then "
    "told only where mlflow.tracking_uri or MLFLOW_TRACKING_URI names a store). [runs/NAME-seed-SEED]",
)
@click.option("--profile", is_flag=True, help="Write profile.json into the folder: a time line for ui.perfetto.dev.")
@_as_json
def run(configuration: str, overrides: tuple[str, ...], out: str | None, profile: bool, as_json: bool) -> None:
    """Run a configuration, and keep all that is known of it in a folder."""
    from engine.config import load
    from engine.run.launch import free_folder, launch
    from engine.store.places import folder_for, is_uri
    from engine.views.terminal import Terminal, console
    from engine.views.trace import Trace

    config = load(configuration, overrides)
    place = out or str(free_folder(configuration, config.seed))
    named = config.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if is_uri(place) and not named:  # a store beside the folder would be gone with it
        config = config.model_copy(update={"mlflow": config.mlflow.model_copy(update={"enabled": False})})
    with folder_for(place) as folder, Terminal(console(as_json)) as terminal:
        result = launch(config, configuration, folder, terminal, Trace() if profile else None)
    if as_json:
        _print_json(dict(result.values))
    elif is_uri(place):
        click.echo(f"copied to: {place}")


@cli.command()
@_configuration_options
@click.option("--address", required=True, metavar="URL", help="Of the cluster's dashboard, as http://HOST:8265.")
@click.option(
    "--out",
    required=True,
    metavar="FOLDER|URI",
    help="Where the job keeps the run's folder: an absolute path on storage that the nodes share, or a URI.",
)
@click.option(
    "--fetch", "fetch_to", type=click.Path(path_type=Path), metavar="DIR", help="Copy the run's folder here afterwards."
)
def submit(configuration: str, overrides: tuple[str, ...], address: str, out: str, fetch_to: Path | None) -> None:
    """Run a configuration as a job on a cluster (Ray Jobs), show its progress, and end with its exit code.

    The current folder travels with it, but for what its .rayignore and .gitignore name, hidden files, data/, runs/,
    tests/ and the like.
    """
    if importlib.util.find_spec("ray") is None:
        raise click.UsageError("Ray is not installed, which sends jobs: pip install 'ray[default,data,train]'")
    from engine.commands.submitting import submit as send

    code = send(configuration, overrides, address, out, fetch_to, lambda text: click.echo(text, nl=False))
    if code:
        click.get_current_context().exit(code)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_overrides
@_code
@_as_json
def resume(folder: Path, overrides: tuple[str, ...], code: tuple[str, ...], as_json: bool) -> None:
    """Go on with a run that ended before its last round, in whatever way. It ends as if nothing had happened."""
    from engine.run.launch import resume as go_on
    from engine.views.terminal import Terminal, console

    with Terminal(console(as_json)) as terminal:
        result = go_on(folder, overrides, terminal, code)
    if result is None:
        click.echo(f"{folder} is finished; to go on beyond its last round, raise their number with --set rounds=N")
    elif as_json:
        _print_json(dict(result.values))


@cli.command()
@click.argument("what", metavar="[METHOD,METHOD,...] COMPARISON|PRESET|FILE", nargs=-1, required=True)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="How many, from the file's own."
)
@_overrides
@click.option("--out", type=click.Path(path_type=Path), help="The comparison's folder. [runs/compare-NAME]")
@_as_json
def compare(what: tuple[str, ...], seeds: int, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Run several methods under the same partition, initial weights, client work and seeds, and set them in a table.

    Called again after an interruption, it goes on with the runs that are missing.
    """
    from engine.compare import compare as perform
    from engine.compare import comparison_of
    from engine.compare.progress import ComparisonTerminal
    from engine.views.terminal import console

    if len(what) > 2:
        raise click.UsageError(f"expected methods and a configuration, found {' '.join(what)}: join methods by commas")
    methods = what[0].split(",") if len(what) == 2 else []
    comparison = comparison_of(methods, what[-1], overrides, seeds)
    folder = out or Path("runs") / f"compare-{Path(what[-1]).stem}"
    command = shlex.join(["tessera", "compare", *what, "--seeds", str(seeds), *(f"--set={o}" for o in overrides)])
    with ComparisonTerminal(console(as_json)) as terminal:
        compared = perform(comparison, folder, command, terminal)
    if as_json:
        rows = [row.tree() for row in compared.rows]
        _print_json({"folder": str(folder), "seconds_spared": compared.saved_seconds, "rows": rows})
    else:
        table = (folder / "table.md").read_text(encoding="utf-8")
        click.echo(f"\n{table}\nclient training spared: {compared.saved_seconds:.0f} s")
        click.echo(f"report: {folder / 'report.html'}")
    if compared.has_failed:
        click.get_current_context().exit(1)


@cli.command()
@click.argument("file", metavar="FILE")
@_overrides
@click.option("--out", type=click.Path(path_type=Path), help="The sweep's folder. [runs/sweep-NAME]")
@_as_json
def sweep(file: str, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Try many settings of a configuration, judged on validation rows, and set them in a table, the best first.

    FILE is a configuration with a section `sweep`. Called again after an interruption, it goes on with what is missing.
    """
    from engine.sweep import sweep as perform
    from engine.sweep import sweep_of
    from engine.sweep.progress import SweepTerminal
    from engine.views.terminal import console

    planned = sweep_of(file, overrides)
    folder = out or Path("runs") / f"sweep-{Path(file).stem}"
    command = shlex.join(["tessera", "sweep", file, *(f"--set={o}" for o in overrides)])
    with SweepTerminal(console(as_json)) as terminal:
        done = perform(planned, folder, command, terminal)
    if as_json:
        rows = [row.tree() for row in done.rows]
        _print_json({"folder": str(folder), "seconds_spared": done.saved_seconds, "rows": rows})
    else:
        click.echo(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}")
        if (folder / "best.yaml").exists():
            click.echo(f"best: {folder / 'best.yaml'}")
    if done.has_failed:
        click.get_current_context().exit(1)


@cli.command()
@click.argument("model", metavar="llama-nano|llama-micro|llama-mini|gpt2-nano")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model, new or empty.")
@click.option("--seed", default=0, show_default=True, help="Of weights, lessons and their order.")
@click.option("--steps", type=int, help="Batches to learn from, at most. [as many as make the model fit]")
@_as_json
def pretrain(model: str, out: Path, seed: int, steps: int | None, as_json: bool) -> None:
    """Make a tiny language model with its tokenizer, offline, and measure how well it rewrites answers."""
    from engine.pretraining import pretrain as perform
    from engine.views.screen import Screen
    from engine.views.terminal import console

    with Screen(console(as_json)) as screen:
        made = perform(model, out, seed, steps, lambda line, _: screen.say(f"{model} · {line}"))
    if as_json:
        _print_json(made.tree())
    else:
        click.echo("\n".join(made.lines()))


@cli.command()
@_configuration_options
@_as_json
def plan(configuration: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what would run where, what it would need, and what would be sent. Nothing is trained."""
    from engine.config import load
    from engine.planning.words import lines
    from engine.run.hosting import predicted_plan

    report = predicted_plan(load(configuration, overrides))
    if as_json:
        _print_json(report.tree())
    else:
        click.echo("\n".join(lines(report)))


@cli.command()
@_configuration_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for partition.png and partition.parquet. [.]")
@_as_json
def partition(configuration: str, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Deal the training examples to clients: a table, a picture and a file."""
    from engine.config import load
    from engine.partition.picture import draw, table
    from engine.planning.federation import Federation
    from engine.store.folder import make

    federation = Federation.gather(load(configuration, overrides))
    dealt, data = federation.partition, federation.dataset
    folder = out or Path.cwd()
    make(folder)
    picture, file = folder / "partition.png", folder / "partition.parquet"
    draw(dealt, data.train_labels, data.task.class_names, picture)
    dealt.save(file, data.fingerprint)
    if as_json:
        counts = dealt.counts(data.train_labels, data.task.classes)
        _print_json(
            {
                "clients": dealt.clients,
                "fingerprint": dealt.fingerprint,
                "class_names": list(data.task.class_names),
                "counts": counts.tolist(),
                "picture": str(picture),
                "file": str(file),
            }
        )
        return
    click.echo(table(dealt, data.train_labels, data.task.class_names))
    click.echo(f"picture: {picture}\nfile: {file}\nfingerprint: {dealt.fingerprint}")


@cli.command(name="list")
@_as_json
def list_(as_json: bool) -> None:
    """List methods with their settings, networks, data sources, partitions and presets."""
    from engine.commands.listing import catalogue, lines

    found = catalogue()
    if as_json:
        _print_json(found)
    else:
        click.echo("\n".join(lines(found)))


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page. [DIR/report.html; comparison.html for several]")
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write the page about a finished run anew, or one page that sets several runs side by side."""
    from engine.store.folder import read
    from engine.views.report import write_report

    page = out or (folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html"))
    write_report([read(folder) for folder in folders], page)
    click.echo(f"report: {page}")


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["onnx", "torchscript", "safetensors", "state_dict", "peft", "merged"]),
    help="ONNX, TorchScript, tensors as safetensors, or a state dict that torch.load(..., weights_only=True) reads; of "
    "a language model a folder: its adapters for peft, or the whole model for transformers.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The file or folder, new. [NAME-OF-DIR.onnx and the like]")
@_client
@_code
def export(folder: Path, kind: str, out: Path | None, client: int | None, code: tuple[str, ...]) -> None:
    """Write the model of a finished run for other tools."""
    from engine.models import load
    from engine.models.exporting import export as write
    from engine.models.exporting import file_name

    path = out or Path(file_name(folder.absolute().name, kind, client))
    model = load(folder, client, code)
    write(model, kind, path)
    click.echo(f"{model.network} as {kind}: {path}")


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("rows", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="A .csv, .parquet or .json file. [CSV on the terminal]")
@_client
@_code
@_as_json
def predict(
    folder: Path, rows: Path, out: Path | None, client: int | None, code: tuple[str, ...], as_json: bool
) -> None:
    """Ask the model of a finished run about rows without labels: a folder of images, an image, a .csv, .jsonl or
    .parquet file, or a .txt file with a text a line."""
    from engine.commands.answering import csv_text, refuse_place, write
    from engine.models import load

    if out:
        refuse_place(out)
    table = load(folder, client, code).predict(rows)
    if out:
        write(table, out)
    if as_json:
        _print_json(table.to_pylist())
    else:
        click.echo(f"predictions: {out}" if out else csv_text(table), nl=bool(out))


@cli.command()
@_as_json
def doctor(as_json: bool) -> None:
    """Look at this machine: what a run needs, and what to do where it is not there."""
    from engine.commands.doctor import CHECKS, examine

    findings = []
    for check in CHECKS:
        finding = examine(check)
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.state:<5} {finding.name}: {finding.found}")
            if finding.remedy:
                click.echo(f"      -> {finding.remedy}")
    if as_json:
        _print_json([finding.tree() for finding in findings])
    if any(finding.state == "fail" for finding in findings):
        click.get_current_context().exit(1)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--round", "round_number", type=int, required=True, help="Round, from 0, as the error named it.")
@click.option("--step", required=True, help="Name of the step.")
@click.option("--client", type=int, required=True, help="Number of the client.")
@click.option("--pdb", "debug", is_flag=True, help="Open Python's debugger where the step raises.")
@_code
def replay(folder: Path, round_number: int, step: str, client: int, debug: bool, code: tuple[str, ...]) -> None:
    """Perform one failed step of a run again, alone and in this process."""
    from engine.run.replay import replay as perform

    reply = perform(folder, round_number, step, client, debug=debug, code=code)
    click.echo(f"step {step} of client {client} ran through this time")
    for name, value in reply.metrics.items():
        click.echo(f"  {name} = {value:g}")
    for kind, count in reply.payload.nbytes().items():
        click.echo(f"  sends {kind}: {count} bytes")


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
