"""However a run on a cluster of its own ends: no process and no file of it stays."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = ["run", "fedavg-digits", "--set", "mlflow.enabled=false", "--set", "clients.steps=1", "--set"]
MARK = "TESSERA_TEST_MARK"
PATIENCE = 180.0

HANGING = """
import sys, threading, ray
ray.shutdown = lambda: threading.Event().wait()
from engine.commands.cli import cli
cli(sys.argv[1:])
"""
"""The command, but Ray's shutdown never comes to an end."""


FAILING = """
import sys
from engine.commands.cli import cli
from engine.store.folder import FolderWatcher
def broken(*_): raise ZeroDivisionError("in mid-run")
FolderWatcher.round = broken
cli(sys.argv[1:])
"""
"""The command, but the end of its first round is an error of ours."""


@dataclass
class Place:
    """A temporary folder that a run alone has, and whose name marks every process of the run in its environment."""

    tmp: Path
    out: Path
    process: subprocess.Popen[str] | None = None

    def run(self, *how: str, rounds: int) -> subprocess.Popen[str]:
        """The command in a process group of its own, as a shell starts it at a terminal."""
        self.process = subprocess.Popen(
            [sys.executable, *how, *RUN, f"rounds={rounds}", "--out", str(self.out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.tmp), MARK: str(self.tmp), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            # A shell that starts tests in the background has them ignore Ctrl-C, and what they start inherits it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return self.process

    def ctrl_c(self) -> None:
        """Interrupt as a terminal does: all processes of the group hear of it, Ray's too."""
        os.killpg(self.process.pid, signal.SIGINT)

    def processes(self) -> dict[int, str]:
        """Those of the run, with their command lines."""
        mark, found = f"{MARK}={self.tmp}".encode(), {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    # Not pytest's own folder: Ray's sockets lie below, and a socket's path has at most 107 characters.
    there = Place(Path(tempfile.mkdtemp(dir="/tmp")), tmp_path / "run")
    yield there
    for pid in there.processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(there.tmp)


def until(happened: Callable[[], object]) -> None:
    """Look until it has happened."""
    limit = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


def heard(stream: Iterator[str], word: str) -> None:
    """Read until a line with a word."""
    assert any(word in line for line in stream), f"it ended without {word!r}"


def assert_nothing_is_left(place: Place) -> None:
    until(lambda: not place.processes())
    until(lambda: not os.listdir(place.tmp))


def test_after_its_end(place):
    running = place.run("-m", "engine", rounds=1)
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_a_failure(place):
    running = place.run("-c", FAILING, rounds=2)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "ZeroDivisionError: in mid-run" in err
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_ctrl_c_in_mid_round(place):
    running = place.run("-m", "engine", rounds=100_000)
    heard(running.stdout, "round")
    place.ctrl_c()
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert err == "stopping; once more to end at once\nstopped\n"
    assert f"to go on with this run: tessera resume {place.out}" in out
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_sigterm_in_mid_round(place):
    running = place.run("-m", "engine", rounds=100_000)
    heard(running.stdout, "round")
    running.terminate()
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 143
    assert err == "stopping; once more to end at once\nstopped\n"
    assert f"to go on with this run: tessera resume {place.out}" in out
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_sigterm_while_ray_starts(place):
    running = place.run("-m", "engine", rounds=100_000)
    until(lambda: any("gcs_server" in line for line in place.processes().values()))
    running.terminate()
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 143
    assert "Traceback" not in err
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_ctrl_c_while_ray_starts(place):
    running = place.run("-m", "engine", rounds=100_000)
    until(lambda: any("gcs_server" in line for line in place.processes().values()))
    place.ctrl_c()
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert place.processes() == {}
    assert os.listdir(place.tmp) == []


def test_after_a_second_ctrl_c_which_waits_for_nothing(place):
    running = place.run("-c", HANGING, rounds=100_000)
    heard(running.stdout, "round")
    place.ctrl_c()
    heard(running.stderr, "once more to end at once")
    place.ctrl_c()
    assert running.wait(timeout=PATIENCE) == -signal.SIGINT
    assert_nothing_is_left(place)


def test_after_a_kill(place):
    running = place.run("-m", "engine", rounds=100_000)
    heard(running.stdout, "round")
    running.kill()
    assert running.wait(timeout=PATIENCE) == -signal.SIGKILL
    assert_nothing_is_left(place)
