"""A cluster of three hosts with addresses of their own: what goes over its links, and a host that is cut off."""

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
    pytest.mark.xdist_group("network"),  # beside the other tests with Ray: these have addresses and ports of their own
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 60
RUN = [f"--set=rounds={ROUNDS}", "--set=clients.steps=20", "--set=mlflow.enabled=false"]
PLACED = ["--set=runner.kind=ray", "--set=runner.hosts=2", "--set=runner.cpus=2"]
"""A run's host fits on a worker once: when one worker is lost, the other has no room."""

FEDAVG = ["--set=clients.net=tests.toys:gated_narrow"]

SCAFFOLD = ["--set=method.name=scaffold", "--set=clients.net=tests.toys:gated_wide"]
"""A client's memory has 300 kB, too many to travel within a reply: it stays on its host's node."""

HEARTBEAT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
"""Settings by which a head takes a host for lost in 15 s, where Ray by itself takes about a minute."""

WHERE = """
import json, ray
from ray.util.state import list_actors
ray.init(log_to_driver=False)
address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
hosts = list_actors(filters=[("class_name", "=", "Host")])
last = max(actor.job_id for actor in hosts)
print(json.dumps(sorted(address[actor.node_id] for actor in hosts if actor.job_id == last and actor.node_id)))
"""

TRAFFIC = """
import ray
from actors.hosts.placement import Placement
from actors.hosts.ray import RayRunner
from tests.support import play, tiny_setup, tiny_shards
ray.init(log_to_driver=False)
setup = tiny_setup("tests.toys:Toy", size=IN_WEIGHTS, step="peek", clients=8)
runner = RayRunner(setup, tiny_shards(8, images=IMAGES), Placement("pooled", 4, 1.0, 0.0, "as asked"))
play(setup, runner, rounds=ROUNDS)
"""

MB = 10**6


class Cluster:
    """Ray on the hosts of a network, with a token of its own."""

    def __init__(self, made: Network, folder: Path) -> None:
        self._network, self._folder = made, folder
        self.gates = folder / "gates"
        self.gates.mkdir()
        self._env = {
            "TOY_GATES": str(self.gates),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **HEARTBEAT,
        }
        self.head = self._joined(1, ["--head", "--port=6379", "--dashboard-host=127.0.0.1"], cpus=0)
        self.workers = [self.worker(2), self.worker(3)]

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

    def submit(self, run: list[str], out: Path) -> subprocess.Popen[str]:
        """A run, submitted on the head, where the dashboard listens on loopback."""
        words = ["submit", "fedavg-digits", *run, *PLACED, "--address", "http://127.0.0.1:8265", "--out", str(out)]
        return subprocess.Popen(
            self.head.command(sys.executable, "-m", "engine", *words),
            env={**os.environ, **self._env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def drive(self, code: str) -> str:
        """The output of a driver on the head."""
        address = {"RAY_ADDRESS": f"{self.head.address}:6379"}
        return self.head.call(sys.executable, "-c", code, env={**self._env, **address})

    def placed(self) -> list[str]:
        """The addresses on which the hosts of the last run were, lost ones included."""
        return json.loads(self.drive(WHERE))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's own folder: Ray's sockets lie below, and a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    with pytest.MonkeyPatch.context() as here, network() as made:
        here.chdir(ROOT)
        yield Cluster(made, folder)
    shutil.rmtree(folder)


def received(host: Host) -> int:
    """Bytes that have come in over a host's link."""
    (link,) = json.loads(host.call("ip", "-json", "-statistics", "link", "show", "eth0"))
    return int(link["stats64"]["rx"]["bytes"])


def test_hosts_are_spread_and_data_and_each_rounds_weights_come_to_a_node_once(cluster):
    """Two runs that differ in their data, and two that differ in their rounds: what they differ by came over once,
    though each node has two of the run's hosts and four clients' worth of messages."""
    data, weights = 24 * MB, 6 * MB

    def traffic(images: int, rounds: int) -> list[int]:
        before = [received(worker) for worker in cluster.workers]
        cluster.drive(f"IN_WEIGHTS, IMAGES, ROUNDS = {weights // 4}, {images}, {rounds}{TRAFFIC}")
        assert cluster.placed() == ["10.213.87.2"] * 2 + ["10.213.87.3"] * 2
        return [received(worker) - start for worker, start in zip(cluster.workers, before, strict=True)]

    little, more_data, more_rounds = traffic(8000, 1), traffic(8000 + data // 64, 1), traffic(8000, 5)
    for one, with_data, with_rounds in zip(little, more_data, more_rounds, strict=True):
        assert data <= with_data - one < 1.3 * data
        assert 4 * weights <= with_rounds - one < 4 * 1.3 * weights


def inline(run: list[str], out: Path, gates: Path) -> dict[str, object]:
    """The result of the same run, undisturbed in one process."""
    words = ["run", "fedavg-digits", *run, "--set=runner.kind=inline", "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "engine", *words],
        cwd=ROOT,
        env={**os.environ, "TOY_GATES": str(gates)},
        check=True,
        capture_output=True,
    )
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize(
    ("method", "gate", "noted"),
    [(FEDAVG, "100", " was lost; clients sent again: "), (SCAFFOLD, "1000", "was lost with the node that held it")],
    ids=["no_memories", "memories_lost"],
)
def test_a_host_that_is_cut_off_in_mid_round_and_a_new_one_leave_the_digest_as_it_is(
    cluster, tmp_path, method, gate, noted
):
    """A round has 200 batches, and each of the two hosts waits before its 251st: so both are in mid-round when one is
    cut off. The rounds that are left take longer than a new host's start."""
    run = [*RUN, *method]
    first, lost = cluster.workers
    running = cluster.submit(run, tmp_path / "run")
    said = []
    for line in running.stdout:
        said.append(line)
        if f"  1/{ROUNDS}  global" in line:
            break
    cluster.cut(lost)
    (cluster.gates / gate).touch()
    new = cluster.workers[1] = cluster.worker(lost.number + 1)
    said += running.stdout
    assert running.wait() == 0, "".join(said)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["digest"] == inline(run, tmp_path / "inline", cluster.gates)["digest"]
    assert noted in (tmp_path / "run" / "run.log").read_text()
    assert {first.address, new.address} <= set(cluster.placed())
