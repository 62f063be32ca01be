"""A cluster of unlike nodes: portable runs have the digests of any machine, native ones say that the nodes differ."""

import json
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.cluster_utils import Cluster

from tests.engine.test_bits import GOLDEN, ROOT, environment, needs_golden, output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def unlike_nodes():
    """The address of a cluster of two nodes, each started as if on another processor."""
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=2, env_vars={"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AVX2"})
        cluster.add_node(num_cpus=2, env_vars={"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_VML_DEBUG_CPU_TYPE": "3"})
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


@needs_golden
def test_on_unlike_nodes_portable_runs_have_the_digests_of_every_machine(unlike_nodes):
    assert json.loads(output("tests.engine.portable_runs", unlike_nodes)) == GOLDEN


def test_on_unlike_nodes_a_native_run_says_so_at_its_start_and_in_its_result(unlike_nodes, tmp_path):
    sets = ["rounds=1", "mlflow.enabled=false", "runner.kind=ray", "runner.hosts=2", "runner.cpus=0.5"]
    words = [f"--set={key}" for key in (*sets, f"runner.address={unlike_nodes}")]
    shown = output("engine", "run", "fedavg-digits", *words, "--out", str(tmp_path / "run"))
    assert "processors: 3 kinds in one run: " in shown
    found = json.loads((tmp_path / "run" / "result.json").read_text())["processors"]
    assert sorted(len(places) for places in found.values()) == [1, 1, 1]
    assert {"ATEN_CPU_CAPABILITY=default" in kind for kind in found} == {True, False}


SHORT = ("rounds=2", "data.limit=200", "partition.clients=3", "clients.net=mlp", "mlflow.enabled=false")


def digests(folder):
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in folder.glob("*/result.json")}


def kinds(folder):
    """Kinds of processors on which the runs of a folder were computed."""
    return {kind for path in folder.glob("*/result.json") for kind in json.loads(path.read_text())["processors"]}


def test_a_portable_comparison_on_unlike_nodes_has_the_digests_that_it_has_here(unlike_nodes, tmp_path):
    sets = [f"--set={key}" for key in (*SHORT, "runner.bits=portable")]
    for name, runner in {"here": "runner.kind=inline", "there": f"runner.address={unlike_nodes}"}.items():
        words = [*sets, f"--set={runner}", "--seeds=1", f"--out={tmp_path / name}"]
        output("engine", "compare", "fedavg,fedavgm", "fedavg-digits", *words)
    assert len(digests(tmp_path / "here")) == 2
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
    assert all("portable bits" in kind for kind in kinds(tmp_path / "there"))


def test_a_portable_sweep_on_unlike_nodes_has_the_table_that_it_has_here(unlike_nodes, tmp_path):
    file = tmp_path / "lr.yaml"
    file.write_text(json.dumps({"base": "fedavg-digits", "sweep": {"keys": {"clients.lr": [0.05, 0.2]}}}))
    sets = [f"--set={key}" for key in (*SHORT, "runner.bits=portable")]
    for name, runner in {"here": "runner.kind=inline", "there": f"runner.address={unlike_nodes}"}.items():
        output("engine", "sweep", str(file), *sets, f"--set={runner}", f"--out={tmp_path / name}")
    assert len(digests(tmp_path / "here")) == 2
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
    tables = [(tmp_path / name / "table.csv").read_bytes() for name in ("here", "there")]
    assert tables[0] == tables[1]


LOOKS = 3000
"""A tenth of a second apart, before a run is held for stuck."""


@pytest.fixture
def shrinking():
    """A cluster of two nodes of one CPU each, and the second of them, which can be removed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


def test_a_node_that_joins_in_mid_run_is_recorded_once_a_host_has_started_there(shrinking, tmp_path):
    """Of two clients with hosts of their own one loses its node; its host starts anew on an unlike one."""
    cluster, other = shrinking
    placed = ("runner.kind=ray", "runner.placement=dedicated", "runner.cpus=1", f"runner.address={cluster.address}")
    sizes = ("mlflow.enabled=false", "partition.clients=2", "rounds=40", "clients.steps=40")
    words = [f"--set={key}" for key in (*placed, *sizes)]
    command = [sys.executable, "-m", "engine", "run", "fedavg-digits", *words, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(LOOKS):
        if (tmp_path / "run/parts/ledger-000000.parquet").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.stdout.read()
    before = set(json.loads((tmp_path / "run/start.json").read_text())["processors"])
    cluster.remove_node(other, allow_graceful=False)
    cluster.add_node(num_cpus=1, env_vars={"ATEN_CPU_CAPABILITY": "default"})
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = json.loads((tmp_path / "run/result.json").read_text())["processors"]
    assert not [kind for kind in before if "ATEN_CPU_CAPABILITY" in kind]
    (new,) = found.keys() - before
    assert "ATEN_CPU_CAPABILITY=default" in new
    assert [place.split(" ")[0] for place in found[new]] == ["node"]
