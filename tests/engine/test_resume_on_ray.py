"""A driver on Ray that is killed: in client training, and inside the Ray Train job."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from tests.engine.test_resume import MOSAIC, assert_same_run

RAY = ("mlflow.enabled=false", "runner.hosts=2", *MOSAIC[1][2:], "method.distil_steps=1000")
MISSES = 2400
"""Looks, a tenth of a second apart, before a run is held for stuck."""
LONGEST = 120
"""Seconds that Ray's processes may outlive a driver that was killed; its agents take a minute to see it."""


def command(*words):
    return [sys.executable, "-m", "engine", *map(str, words)]


def settings(*overrides):
    return [word for override in overrides for word in ("--set", override)]


def killed_when(there, arguments, log):
    """Start a command and kill it, with SIGKILL, as soon as its files show what is waited for; the processes that it
    leaves behind."""
    with log.open("w") as file:
        process = subprocess.Popen(command(*arguments), stdout=file, stderr=file)
    for _ in range(MISSES):
        if there() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, log.read_text()
    assert there(), log.read_text()
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_client_training_and_again_in_its_train_job_ends_as_if_nothing_had_happened(tmp_path):
    """The student checkpoints every 200 steps of 1000; what is resumed begins with the last of these."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    inline = settings("runner.kind=inline", *(one for one in RAY if one != "runner.hosts=2"))
    subprocess.run(command("run", MOSAIC[0], *inline, "--out", whole), check=True, capture_output=True)
    left = killed_when(
        lambda: list(run.glob("parts/ledger-000000.parquet")),
        ["run", MOSAIC[0], *settings(*RAY), "--out", run],
        tmp_path / "first.log",
    )
    left += killed_when(
        lambda: list(run.glob("checkpoints/round-000001/student-0/student/*/student.safetensors")),
        ["resume", run],
        tmp_path / "second.log",
    )
    subprocess.run(command("resume", run), check=True, capture_output=True)
    assert_same_run(run, whole, besides=("runner", "placement", "hosts"))
    assert len(left) > 10  # Ray's own and the hosts, twice
    assert psutil.wait_procs(left, timeout=LONGEST)[1] == []
