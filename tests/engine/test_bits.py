"""Portable bits: one digest on unlike processors, which variables of libraries emulate; and what native runs say."""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from actors.runner import InlineRunner
from clusters.bits import PORTABLE, shortcoming_here
from engine.commands.cli import cli
from engine.config import load
from engine.errors import ConfigError
from engine.planning.federation import Federation
from engine.run.context import RunContext
from engine.run.launch import launch, resume
from engine.run.processors import with_processors
from engine.store.folder import RunFolder, read
from engine.views.report import write_report
from tests.engine.runs import stored

ROOT = Path(__file__).resolve().parents[2]

GOLDEN = {
    "fedavg": "f405c9240eb3dc80678cfeee00b8078d9b2886c677ea1b9b61a211ee0a9388c6",
    "scaffold": "6b00e4edc7c5ff6689853ed81c1df773aafb6748c5b37c092e59c8aff6fd1d73",
    "mosaic, dcgan": "92f2c4852a9358c858a7e4c3bdae35f2d9f125cb542a8c68f1a2e52a33b22f2a",
    "mosaic, mixed": "fbc43c86816b8c0d91176565bbd784db5f9c1e13ede96f0e8c799ef8c43fcc79",
}
"""Digests of `tests.engine.portable_runs` on every machine. A change of a method's mathematics changes them, as it does
those of presets; where they differ between machines, a choice of kernels is open that `PORTABLE` should close."""

VERSIONS = {"torch": "2.13.0", "numpy": "2.4.6", "scikit-learn": "1.9.1"}
"""With which the digests were made."""

UNLIKE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "AVX2",
    "MKL_VML_DEBUG_CPU_TYPE": "3",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2",
}
"""As if on another processor."""

RUN = ("fedavg-digits", ("runner.kind=inline", "mlflow.enabled=false", "rounds=2", "clients.cohort=2"))


def why_no_golden() -> str:
    """Why this machine need not give the golden digests; "" where it must."""
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in VERSIONS}
    other = [f"{name} {version}" for name, version in found.items() if version != VERSIONS[name]]
    if other:
        return f"the digests were made with other versions than {', '.join(other)}"
    lacking = shortcoming_here()
    return lacking and f"portable bits need {lacking}"


needs_golden = pytest.mark.skipif(bool(why_no_golden()), reason=why_no_golden() or "none")


def environment(**variables: str) -> dict[str, str]:
    """That of this process, with these variables alone of those that choose kernels."""
    return {**{name: value for name, value in os.environ.items() if name not in PORTABLE}, **variables}


def output(*words: str, **variables: str) -> str:
    """What a command of Python's prints."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_golden
@pytest.mark.parametrize("variables", [{}, UNLIKE], ids=["as it is", "another processor"])
def test_portable_runs_have_the_same_digests_on_every_machine(variables):
    assert json.loads(output("tests.engine.portable_runs", **variables)) == GOLDEN


@pytest.mark.slow
@needs_golden
def test_the_command_starts_itself_anew_for_portable_bits(tmp_path):
    """Native, the two differ: so the variables do emulate another processor."""
    sets = [f"--set={key}" for key in RUN[1]]
    digests = {}
    for bits in ("native", "portable"):
        for name, variables in (("here", {}), ("there", UNLIKE)):
            out = tmp_path / f"{bits}-{name}"
            words = ("engine", "run", RUN[0], *sets, f"--set=runner.bits={bits}", "--out", str(out))
            assert ("bits: portable" in output(*words, **variables)) == (bits == "portable")
            digests[bits, name] = json.loads((out / "result.json").read_text())["digest"]
    assert digests["portable", "here"] == digests["portable", "there"]
    assert len(set(digests.values())) == 3


@pytest.mark.skipif(bool(shortcoming_here()), reason="no such bits")
def test_in_a_process_that_was_started_otherwise_portable_bits_are_refused_in_one_sentence(tmp_path):
    sets = [f"--set={key}" for key in (*RUN[1], "runner.bits=portable")]
    done = CliRunner().invoke(cli, ["run", RUN[0], *sets, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "this one was started without the variables for it; start Python as `env " in done.output
    assert not (tmp_path / "run").exists()


@pytest.fixture
def killed(tmp_path):
    """The folder of a native run that was stopped before its last round."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        launch(load(*RUN), RUN[0], folder, Listener(stop=0))
    return folder


class Listener:
    """A watcher that stops the run as Ctrl-C does when it hears of a round, or lets it end where that is None."""

    def __init__(self, stop: int | None = None) -> None:
        self._stop = stop

    def __getattr__(self, name: str):
        return lambda *_: None

    def round(self, record) -> None:
        if record.round == self._stop:
            raise KeyboardInterrupt


def on_another_processor(monkeypatch) -> None:
    monkeypatch.setattr("engine.run.hosting.processor", lambda: "another kind")


def test_resuming_on_another_kind_of_processor_is_told_and_both_are_kept(killed, monkeypatch):
    (first,) = RunFolder(killed).processors()
    on_another_processor(monkeypatch)
    result = resume(killed, (), Listener())
    stored = read(killed)
    assert result.values["processors"] == {first: ["driver"], "another kind": ["driver"]} == stored.result["processors"]
    assert stored.facts["changed: processors"] == f"{first} -> another kind"
    assert stored.facts["processors"].startswith(f"2 kinds in one run: {first} (driver); another kind (driver).")


def test_resuming_on_the_same_kind_says_nothing_of_it(killed):
    resume(killed, (), Listener())
    assert not [key for key in read(killed).facts if "processors" in key]


def test_a_machine_that_joined_stands_in_the_result_also_of_a_run_that_was_interrupted_meanwhile(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(InlineRunner, "processors", lambda self: {"node 3 (10.0.0.3)": "another kind"})
        with pytest.raises(KeyboardInterrupt):
            launch(load(*RUN), RUN[0], tmp_path / "run", Listener(stop=1))
    result = resume(tmp_path / "run", (), Listener())
    assert result.values["processors"]["another kind"] == ["node 3 (10.0.0.3)"]
    assert "since the processors differ: " in (tmp_path / "run" / "report.html").read_text()


def test_a_run_cannot_go_on_with_other_bits(killed):
    with pytest.raises(ConfigError, match=r'runner\.bits = "portable": was "native" when the run began'):
        resume(killed, ("runner.bits=portable",), Listener())


def context(folder: Path, bits: str) -> RunContext:
    config = load(RUN[0], (*RUN[1],))
    federation = Federation.gather(config)
    changed = config.model_copy(update={"runner": config.runner.model_copy(update={"bits": bits})})
    return RunContext(replace(federation, config=changed), RunFolder(folder), RUN[0], clock=None)


def test_hosts_of_several_kinds_are_told_where_bits_are_native_and_are_no_matter_where_they_are_portable(tmp_path):
    places = {"driver": "kind A", "node 1 (10.0.0.1)": "kind A", "node 2 (10.0.0.2)": "kind B"}
    native, portable = (with_processors(context(tmp_path, bits), places) for bits in ("native", "portable"))
    assert native.processors == {"kind A": ["driver", "node 1 (10.0.0.1)"], "kind B": ["node 2 (10.0.0.2)"]}
    assert native.processors == portable.processors
    assert native.start().facts["processors"] == (
        "2 kinds in one run: kind A (driver, node 1 (10.0.0.1)); kind B (node 2 (10.0.0.2)). They round differently, "
        "so that the digest depends on who computed what; runner.bits: portable makes it one"
    )
    assert "processors" not in portable.facts


@pytest.mark.parametrize(
    ("bits", "kinds", "words"),
    [
        ("native", {"kind A": ["driver"]}, ", on a processor of this kind: kind A."),
        (
            "native",
            {"kind A": ["driver"], "kind B": ["node 1"]},
            "; but it depends on who computed what, since the processors differ: kind A (driver); kind B (node 1).",
        ),
        ("portable", {"kind A": ["driver"]}, ", on every x86-64 processor with AVX2 (bits: portable)."),
    ],
)
def test_the_report_says_which_processors_give_the_digest(tmp_path, bits, kinds, words):
    run = stored(tmp_path / "run")
    config, result = {**run.config, "runner": {"bits": bits}}, {**run.result, "processors": kinds}
    write_report([replace(run, config=config, result=result)], tmp_path / "report.html")
    assert words in (tmp_path / "report.html").read_text()
