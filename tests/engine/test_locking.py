"""Locks between processes, on disks with flock and without, and on systems without fcntl."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.run.launch import launch
from engine.store.folder import FolderError, RunFolder
from engine.store.locking import Busy, locked_by_us

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys
from pathlib import Path
from engine.store.locking import locked_by_us
with locked_by_us(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""

WITHOUT_FLOCK = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.{name}, os.strerror(errno.{name}))
fcntl.flock = flock
"""


def without_flock(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def holding(tmp_path):
    """Starts processes that hold a lock until they are ended."""
    started = []

    def hold(head=""):
        words = [sys.executable, "-c", head + HOLD, str(tmp_path / ".lock")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, cwd=ROOT, **pipes))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_lock_is_for_one_process_at_a_time_and_free_when_it_was_killed(tmp_path, holding):
    process = holding()
    with pytest.raises(Busy), locked_by_us(tmp_path / ".lock"):
        pass
    process.kill()
    process.wait()
    with locked_by_us(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_so_it_is_on_a_disk_without_flock(tmp_path, holding, monkeypatch, name):
    without_flock(monkeypatch, getattr(errno, name))
    process = holding(WITHOUT_FLOCK.format(name=name))
    with pytest.raises(FolderError) as caught, RunFolder(tmp_path).lock():
        pass
    assert f"if process {process.pid} on {socket.gethostname()} is gone, remove {tmp_path}/.lock" in str(caught.value)
    process.kill()
    process.wait()
    with locked_by_us(tmp_path / ".lock"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_another_machine_counts_whether_or_not_its_process_lives(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOSYS)
    (tmp_path / ".lock").write_text("1234\nelsewhere\n")
    with pytest.raises(Busy, match="process 1234 on elsewhere"), locked_by_us(tmp_path / ".lock"):
        pass


def test_a_run_ends_on_a_disk_without_flock(tmp_path, monkeypatch):
    from engine.config import load
    from tests.engine.test_compare import Silent

    without_flock(monkeypatch, errno.ENOSYS)
    keys = ["runner.kind=inline", "rounds=1", "clients.steps=1", "mlflow.enabled=false"]
    launch(load("fedavg-digits", keys), "fedavg-digits", tmp_path / "run", Silent())
    assert (tmp_path / "run" / "result.json").is_file()
    assert not (tmp_path / "run" / ".lock").exists()


WINDOWS = """
import os, sys
import psutil  # which needs the one on Linux and not on Windows
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("sched_getaffinity", "getuid", "fork", "statvfs", "sysconf", "killpg"):
    if hasattr(os, name):
        delattr(os, name)
import ctypes, signal
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGSTOP"):
    delattr(signal, name)
import tessera_fl
tessera_fl.main()
"""


def test_inline_runs_work_where_there_is_no_fcntl_and_no_resource(tmp_path):
    """As on Windows, but for how it spells paths."""
    words = ["run", "fedavg-digits", "--set=runner.kind=inline", "--set=rounds=1", "--set=clients.steps=1"]
    words += ["--set=mlflow.enabled=false", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", WINDOWS, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


def test_on_windows_a_run_on_ray_is_refused_with_the_way_out(monkeypatch):
    from engine.config import load
    from engine.errors import ConfigError
    from engine.planning.checking import check
    from engine.planning.federation import Federation

    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(ConfigError, match="runs on Ray need Linux or macOS"):
        check(Federation.gather(load("fedavg-digits")))
