"""Ray's object store runs full in mid-run: it spills to disk, and where that is full too the run says so and ends."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

ALLOWED = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0

ASKED = ["fedavg-digits"]
for one in (
    "method.name=scaffold",
    "clients.net=tests.toys:huge",
    "clients.steps=1",
    "rounds=2",
    "mlflow.enabled=false",
):
    ASKED += ["--set", one]
"""Ten clients that remember 12 MB each, in an object store of 80 MiB."""

CLUSTER = """
import subprocess, sys
from ray.cluster_utils import Cluster

spill, *command = sys.argv[1:]
store = {"object_store_memory": 80 * 2**20, "object_spilling_directory": spill}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **store})
code = subprocess.run([*command, "--set", f"runner.address={cluster.address}"]).returncode
cluster.shutdown()
sys.exit(code)
"""


def on_small_store(spill, folder, *before):
    command = [sys.executable, "-m", "engine", "run", *ASKED, "--out", str(folder)]
    return subprocess.run(
        [*before, sys.executable, "-c", CLUSTER, str(spill), *command], capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_does_not_fit_into_the_store_is_spilled_and_the_run_is_the_same(tmp_path):
    (tmp_path / "spill").mkdir()
    ended = on_small_store(tmp_path / "spill", tmp_path / "run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    inline = [sys.executable, "-m", "engine", "run", *ASKED, "--set", "runner.kind=inline", "--out", tmp_path / "whole"]
    subprocess.run(inline, check=True, capture_output=True)
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole"))
    assert ours["digest"] == theirs["digest"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not ALLOWED, reason="this machine lets nobody mount a small disk of their own (unshare -rm)")
def test_a_full_store_on_a_full_disk_ends_the_run_with_its_size_and_the_way_out(tmp_path):
    (tmp_path / "spill").mkdir()
    mounted = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    ended = on_small_store(
        tmp_path / "spill", tmp_path / "run", "unshare", "-rm", "sh", "-c", mounted, str(tmp_path / "spill")
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "Ray's object store is full (80 MiB on its nodes), and so is the disk that it spills to" in said
    assert "tessera resume" in said
    assert "Traceback" not in said
