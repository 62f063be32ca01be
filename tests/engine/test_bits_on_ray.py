"""A cluster of unlike nodes: portable runs have the digests of any machine, native ones say that the nodes differ."""

import json

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.cluster_utils import Cluster

from tests.engine.test_bits import GOLDEN, needs_golden, output

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
