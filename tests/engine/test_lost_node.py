"""A node of a cluster that is lost in mid-run, with the hosts on it and with what clients kept there."""

import json
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.cluster_utils import Cluster

SCAFFOLD = (
    "method.name=scaffold",
    "clients.net=tests.toys:wide",
    "clients.steps=1",
    "rounds=6",
    "mlflow.enabled=false",
)
"""A control variate of this network has 300 kB, too many to travel within a reply: it stays on its host's node."""

LOOKS = 3000
"""A tenth of a second apart, before a run is held for stuck."""


def run(folder, *overrides):
    words = [word for override in (*SCAFFOLD, *overrides) for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "run", "fedavg-digits", *words, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def cluster():
    """Two nodes of one processor each; the run's driver is on the first."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_lost_in_mid_run_with_clients_memories_changes_nothing_of_the_run(tmp_path, cluster):
    other = cluster.add_node(num_cpus=1)
    process = run(tmp_path / "run", f"runner.address={cluster.address}")
    for _ in range(LOOKS):
        if (tmp_path / "run/parts/ledger-000001.parquet").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.stdout.read()
    cluster.remove_node(other, allow_graceful=False)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "Unhandled error" not in said
    assert run(tmp_path / "whole", "runner.kind=inline").wait() == 0
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole"))
    assert ours["digest"] == theirs["digest"]
    ledgers = [pq.read_table(tmp_path / name / "ledger.parquet") for name in ("run", "whole")]
    assert ledgers[0].equals(ledgers[1])
    names = set(pq.read_table(tmp_path / "run/rounds.parquet")["name"].to_pylist())
    assert "fault/memory_lost/retry" in names
    assert "memory lost with its node, tried again" in (tmp_path / "run/report.html").read_text()
    assert (
        "was lost with the node that held it; the run goes on from its last" in (tmp_path / "run/run.log").read_text()
    )
