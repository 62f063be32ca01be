"""A cluster of three hosts with addresses of their own: one is cut off in mid-round, and a new one joins."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from tests.clusters.network import Host, Network, network, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 12
RUN = [f"--set=rounds={ROUNDS}", "--set=clients.steps=40", "--set=mlflow.enabled=false"]
PLACED = ["--set=runner.kind=ray", "--set=runner.hosts=2", "--set=runner.cpus=2"]
"""A run's host fits on a worker once, and on the head not at all: when a worker is lost, the other has no room."""

HEARTBEAT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
"""How soon a head holds a host for lost: in 15 s, where Ray's own settings take 50."""

WHERE = """
import json, ray
from ray.util.state import list_actors
ray.init(log_to_driver=False)
address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
hosts = list_actors(filters=[("class_name", "=", "Host")])
print(json.dumps([address[actor.node_id] for actor in hosts if actor.node_id]))
"""


class Cluster:
    """Ray on the hosts of a network, with a token of its own."""

    def __init__(self, made: Network, folder: Path) -> None:
        self._network, self._folder = made, folder
        self._env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_RUNTIME_ENV_WORKING_DIR_CACHE_SIZE_GB": "1",
            "OMP_NUM_THREADS": "1",
            **HEARTBEAT,
        }
        self.head = self._joined(1, ["--head", "--port=6379", "--dashboard-host=127.0.0.1"], cpus=1)

    def worker(self, number: int) -> Host:
        """A new host of three CPUs that has joined."""
        return self._joined(number, [f"--address={self.head.address}:6379"], cpus=3)

    def _joined(self, number: int, how: list[str], cpus: int) -> Host:
        host = self._network.host(number)
        own = [f"--temp-dir={self._folder / str(number)}", f"--node-ip-address={host.address}"]
        small = [f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats"]
        host.call("ray", "start", *how, *own, *small, env=self._env)
        return host

    def cut(self, host: Host) -> None:
        self._network.cut(host)

    def submit(self, out: Path) -> subprocess.Popen[str]:
        """A run, submitted on the head, where the dashboard listens on loopback."""
        words = ["submit", "fedavg-digits", *RUN, *PLACED, "--address", "http://127.0.0.1:8265", "--out", str(out)]
        return subprocess.Popen(
            self.head.command(sys.executable, "-m", "engine", *words),
            env={**os.environ, **self._env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def placed(self) -> list[str]:
        """The addresses on which the run's hosts were, lost ones included."""
        ray_address = {"RAY_ADDRESS": f"{self.head.address}:6379"}
        return json.loads(self.head.call(sys.executable, "-c", WHERE, env={**self._env, **ray_address}))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.chdir(ROOT)
    # Not pytest's own folder: Ray's sockets lie below, and a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    with network() as made:
        yield Cluster(made, folder)
    shutil.rmtree(folder)


def inline(out: Path) -> dict[str, object]:
    """The result of the same run, undisturbed in one process."""
    words = ["run", "fedavg-digits", *RUN, "--set=runner.kind=inline", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "engine", *words], cwd=ROOT, check=True, capture_output=True)
    return json.loads((out / "result.json").read_text())


def test_a_host_that_is_cut_off_in_mid_round_and_a_new_one_leave_the_digest_as_it_is(cluster, tmp_path):
    _, lost = cluster.worker(2), cluster.worker(3)
    running = cluster.submit(tmp_path / "run")
    said = []
    for line in running.stdout:
        said.append(line)
        if f" 2/{ROUNDS}  global" in line:
            break
    cluster.cut(lost)
    cluster.worker(4)
    said += running.stdout
    assert running.wait() == 0, "".join(said)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["digest"] == inline(tmp_path / "inline")["digest"]
    assert "was lost in step train" in (tmp_path / "run" / "run.log").read_text()
    assert sorted(cluster.placed()) == ["10.213.87.2", "10.213.87.3", "10.213.87.4"]
