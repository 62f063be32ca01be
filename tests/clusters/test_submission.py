"""Jobs: what travels, how a shell reads it, how it is followed and stopped, how it ends, and where its results go."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray._private.runtime_env.packaging import create_package

import clusters.submission
from clusters.session import ClusterError
from clusters.submission import EXCLUDES, SubmittedJob, submit
from engine.commands.submitting import command
from engine.commands.submitting import submit as submit_run

ROOT = Path(__file__).resolve().parents[2]
NASTY = ["a b", "$(touch pwned)", "`touch pwned`", "x;touch pwned", "it's", '"', "*", "~", "-x", "", "é\n\\"]


def travels(folder: Path, tmp_path: Path, excludes: list[str]) -> list[str]:
    """The files that Ray sends of a folder, made into the very archive that it sends."""
    archive = tmp_path / "sent.zip"
    create_package(str(folder), archive, include_gitignore=True, excludes=excludes)
    assert archive.stat().st_size < 2 * 2**20
    return [name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")]


def test_of_the_repository_its_packages_travel_whole_and_little_else_in_less_than_two_mebibytes(tmp_path):
    sent = travels(ROOT, tmp_path, excludes=[])  # as `ray job submit --working-dir .` does, by .rayignore
    packages = {name.partition("/")[0] for name in sent if "/" in name}
    assert packages == {"algorithms", "actors", "clusters", "engine"}
    tracked = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {*tracked.stdout.splitlines(), "tessera_fl.py"} <= set(sent)


def test_of_a_users_own_folder_code_and_configurations_travel_and_neither_data_nor_results(tmp_path):
    own = ["my.yaml", "part.parquet", "mine/nets.py", "mine/data/read.py"]
    other = [".venv/x.py", ".git/x", ".env", "venv/x.py", "data/train.parquet", "runs/a/result.json", "mlruns/x"]
    other += ["mlflow.db", "mine/__pycache__/x.pyc"]
    for name in [*own, *other]:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).touch()
    assert sorted(travels(tmp_path / "folder", tmp_path, list(EXCLUDES))) == sorted(own)


def test_both_ways_to_submit_have_one_list():
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert tuple(line for line in lines if not line.startswith("#")) == EXCLUDES


class Recorder:
    """Takes the place of Ray's client, and keeps what it is asked."""

    def __init__(self, address=None):
        self.asked = {}

    def submit_job(self, **asked):
        self.asked.update(asked)
        return "job-1"


@pytest.fixture
def recorder(monkeypatch):
    there = Recorder()
    monkeypatch.setattr(clusters.submission, "JobSubmissionClient", lambda address: there)
    monkeypatch.setattr(clusters.submission, "_require_dashboard", lambda address: None)
    monkeypatch.setattr(clusters.submission, "_silence_loggers", lambda: None)
    return there


def test_a_shell_reads_every_word_as_it_was(recorder, tmp_path):
    submit(["printf", r"%s\0", *NASTY], tmp_path, "http://there:8265")
    said = subprocess.run(["sh", "-c", recorder.asked["entrypoint"]], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split("\0")[:-1] == NASTY
    assert os.listdir(tmp_path) == []


def test_a_cluster_whose_agent_does_not_answer_is_told_with_the_port_that_it_may_lack(recorder, tmp_path, monkeypatch):
    def refuse(**asked):
        raise RuntimeError("Request failed with status code 500: No available agent to submit job.")

    monkeypatch.setattr(recorder, "submit_job", refuse)
    with pytest.raises(ClusterError, match=r"No available agent.* Where .* --dashboard-agent-listen-port"):
        submit(["true"], tmp_path, "http://there:8265")


def test_a_configuration_and_settings_stay_what_they_are_whatever_they_look_like():
    words = command("--help", ["a=$(x)", "b=--out"], "s3://bucket/x y")
    assert words[:4] == ["python", "-m", "tessera_fl", "run"]
    assert words[4:] == ["--set", "a=$(x)", "--set", "b=--out", "--out", "s3://bucket/x y", "--", "--help"]


class Broken:
    """A client whose connection breaks twice; each new one tells the log from its beginning, the last not all."""

    log, parts = "one\ntwo\nthree\nfour\n", [["one\n"], ["one\n", "two\nth"], ["one\ntwo\n", "three\n"]]

    def __init__(self, status, code):
        self._status, self._code, self._times = status, code, 0

    async def tail_job_logs(self, job):
        self._times += 1
        for part in self.parts[self._times - 1]:
            yield part
        if self._times < 3:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_logs(self, job):
        return self.log

    def get_job_info(self, job):
        ended = self._times == 3
        return SimpleNamespace(
            status=self._status if ended else "RUNNING", driver_exit_code=self._code, message="it could not start"
        )


@pytest.mark.parametrize(
    ("status", "exit_code", "code", "last"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("SUCCEEDED", None, 0, ""),
        ("FAILED", 2, 2, ""),
        ("FAILED", None, 1, "job job-1: it could not start\n"),
    ],
)
def test_where_connections_break_everything_is_told_once_and_the_exit_code_is_the_commands(
    monkeypatch, status, exit_code, code, last
):
    async def at_once(seconds): ...

    monkeypatch.setattr(clusters.submission.asyncio, "sleep", at_once)
    told = []
    job = SubmittedJob(Broken(status, exit_code), "job-1")
    assert job.follow(told.append) == code
    assert "".join(told) == Broken.log + last


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:8265", "has the form http://HOST:8265"),
        ("ray://head:10001", "has the form http://HOST:8265"),
        ("http://127.0.0.1:1", "no dashboard answers at http://127.0.0.1:1: connection refused.*ssh -N -L"),
        ("http://head.invalid", "no dashboard answers at http://head.invalid: .*(not known|resolution)"),
    ],
)
def test_an_address_where_no_dashboard_answers_is_named_with_the_way_out(tmp_path, address, said):
    with pytest.raises(ClusterError, match=said):
        submit(["true"], tmp_path, address)


def test_what_listens_but_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters.submission, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no dashboard answers at {address}: .*timed out"):
            submit(["true"], tmp_path, address)


def refused(**changes) -> str:
    """The message for a run that is not sent."""
    asked = {"configuration": "fedavg-digits", "overrides": (), "out": "/shared/x", "fetch_to": None, **changes}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (whose words are looked at)
        submit_run(address="http://127.0.0.1:1", tell=print, **asked)
    return str(caught.value)


def test_what_cannot_be_run_or_kept_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "outside.yaml").write_text((ROOT / "engine/presets/fedavg-digits.yaml").read_text())
    monkeypatch.chdir(tmp_path / "here")
    assert "clients.cohort = 77" in refused(overrides=("clients.cohort=77",))
    assert "only the current folder travels" in refused(configuration="../outside.yaml")
    assert "name an absolute path on storage" in refused(out="runs/x")
    assert "already holds something" in refused(fetch_to=tmp_path)
    for folder in ("/", tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(folder)
        assert f"{folder} is too much" in refused()


NET = """
from torch import nn
def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


def tessera(folder: Path, *arguments: object, on_ctrl_c=signal.SIG_DFL, **variables) -> subprocess.Popen[str]:
    """The command, called in a folder of the user's own, with further variables of the environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, on_ctrl_c),
    )


@pytest.fixture
def mine(tmp_path):
    """A user's folder: a configuration whose name is a trap for a shell, and a network of the user's own."""
    folder = tmp_path / "mine"
    (folder / "own").mkdir(parents=True)
    (folder / "own" / "__init__.py").touch()
    (folder / "own" / "nets.py").write_text(NET)
    preset = (ROOT / "engine/presets/fedavg-digits.yaml").read_text()
    (folder / NAME).write_text(preset)
    return folder


NAME = "my; touch pwned $(touch pwned) it's.yaml"
QUICK = ["--set=runner.kind=inline", "--set=clients.steps=1", "--set=mlflow.enabled=false"]
OWN = [*QUICK, "--set=clients.net=own.nets:make"]


@pytest.mark.slow
def test_a_job_gives_the_same_run_with_its_progress_and_its_folder_fetched_back(ray_cluster, mine, tmp_path):
    """By submit and by Ray's own command, and as a run without a cluster."""
    address, out, back = f"http://{ray_cluster.dashboard}", tmp_path / "sha red", tmp_path / "back"
    asked = [NAME, *OWN, "--set=rounds=2"]
    sent = tessera(mine, "submit", *asked, "--address", address, "--out", out, "--fetch", back)
    said, err = sent.communicate(timeout=200)
    assert sent.returncode == 0, said + err
    assert "round 2/2  global" in said
    assert said.endswith(f"fetched: {back}\n")
    assert err == ""
    plain = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m", "engine"]
    plain += ["run", *asked, "--out", str(tmp_path / "plain")]
    done = subprocess.run(plain, cwd=mine, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    here = tessera(mine, "run", *asked, "--out", tmp_path / "here")
    assert here.wait(timeout=200) == 0, here.stderr.read()
    folders = (out, back, tmp_path / "plain", tmp_path / "here")
    assert len({json.loads((folder / "result.json").read_text())["digest"] for folder in folders}) == 1
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_a_job_ends_with_the_commands_own_exit_code(ray_cluster, mine, tmp_path):
    """What is wrong shows only where the data is read."""
    asked = ["--set=partition.clients=2000", "--address", f"http://{ray_cluster.dashboard}", "--out", tmp_path / "out"]
    sent = tessera(mine, "submit", NAME, *QUICK, *asked)
    said, _ = sent.communicate(timeout=200)
    assert sent.returncode == 2
    assert "use at most 1297 clients" in said


@pytest.mark.slow
def test_ctrl_c_stops_the_job_in_good_order(ray_cluster, mine, tmp_path):
    address, out = f"http://{ray_cluster.dashboard}", tmp_path / "out"
    sent = tessera(mine, "submit", NAME, *QUICK, "--set=rounds=100000", "--address", address, "--out", out)
    assert any("round" in line and "global" in line for line in sent.stdout)
    sent.send_signal(signal.SIGINT)
    said, err = sent.communicate(timeout=200)
    assert sent.returncode == 130
    assert "is told to stop" in said
    assert f"to go on with this run: tessera resume {shlex.quote(str(out))}" in said
    assert err == "stopping; once more to end at once\nstopped\n"


@pytest.mark.slow
def test_a_job_that_ignores_ctrl_c_is_stopped_in_good_order_all_the_same(recorder, mine, tmp_path):
    """As all commands do that a script has started in its background, Ray and its jobs among them."""
    submit(["true"], tmp_path, "http://there:8265")
    stop = signal.Signals[recorder.asked["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"]]
    job = tessera(mine, "run", NAME, *QUICK, "--set=rounds=100000", "--out", tmp_path / "out", on_ctrl_c=signal.SIG_IGN)
    assert any("round" in line and "global" in line for line in job.stdout)
    job.send_signal(signal.SIGINT)
    job.send_signal(stop)
    said, err = job.communicate(timeout=200)
    assert "to go on with this run" in said
    assert err == "stopping; once more to end at once\nstopped\n"


@pytest.mark.slow
def test_another_token_than_the_clusters_is_told(ray_cluster, mine, tmp_path):
    asked = ["--address", f"http://{ray_cluster.dashboard}", "--out", tmp_path / "out"]
    sent = tessera(mine, "submit", NAME, *asked, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64)
    _, err = sent.communicate(timeout=200)
    assert sent.returncode == 2
    assert "this process has no token, or another than the cluster" in err
