"""A node of a cluster that is lost in mid-run, with the hosts on it and with what clients kept there."""

import json
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.cluster_utils import Cluster

from actors.steps.worker import one_thread
from algorithms.core.distillation import distil_here
from algorithms.core.records import digest
from tests.distil_toys import Noise, toy_job

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


LESSON = {"source": Noise(batch=1000), "steps": 30, "distinct": 30}
"""Batches of 144 kB, too many to travel within a reply: they stay on the sampler's and the teacher's node."""

DISTILLATION = """
import sys
from pathlib import Path

import ray

from actors.distillation.plan import Actors, DistilResources
from actors.distillation.job import distil_on_ray
from actors.runner import Listener
from algorithms.core.records import digest
from tests.distil_toys import Waiting, toy_job
from tests.engine.test_lost_node import LESSON

folder, address = Path(sys.argv[1]), sys.argv[2]
ray.init(address=address, log_to_driver=False)
replaced = []
resources = DistilResources(trainers=Actors(cpus=2.0), ahead_mb=1)
job = toy_job(**LESSON, loss=Waiting(folder))
print(digest(distil_on_ray(job, resources, folder / "storage", Listener(replaced=replaced.append))))
print(*sorted(replaced))
"""


def run(folder, *overrides):
    words = [word for override in (*SCAFFOLD, *overrides) for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "run", "fedavg-digits", *words, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def cluster(request):
    """The first node, on which a run's driver is; of one processor, or as many as a test says."""
    cpus = getattr(request, "param", 1)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
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


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [2], indirect=True, ids=["two_processors"])
def test_a_node_lost_with_the_pipeline_of_a_distillation_changes_no_bit_of_the_student(tmp_path, cluster):
    """The train worker takes the whole of the first node, so that sampler and teacher are on the other one. The node
    is lost in step 3 of 30, when a megabyte of batches, some seven, may lie ahead; another one takes its place."""
    other = cluster.add_node(num_cpus=1)
    process = subprocess.Popen(
        [sys.executable, "-c", DISTILLATION, str(tmp_path), cluster.address], stdout=subprocess.PIPE, text=True
    )
    for _ in range(LOOKS):
        if (tmp_path / "waiting").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None
    cluster.remove_node(other, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    (tmp_path / "open").touch()
    said, _ = process.communicate(timeout=200)
    with one_thread():
        student = distil_here(toy_job(**LESSON))
    assert said.splitlines()[-2:] == [digest(student), "sampler teacher"]
    assert (tmp_path / "calls").read_text().split() == 30 * ["step"]
