"""Clusters: what answers, what is started, and that nothing is left behind."""

# ruff: noqa: E402 (where Ray is not installed the file is skipped before it imports what needs Ray)
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from clusters.chatter import collect, redirect_all_output, redirect_ray_output
from clusters.session import ClusterError, attach_or_start, store_bytes
from clusters.sweeping import LONGEST, scratch_folder

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own: one process can be attached to one cluster only."""
    head = (
        "import logging, os, signal, sys, ray\nfrom pathlib import Path\nfrom clusters.session import attach_or_start\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def attach(address: str, folder: Path) -> None:
    with attach_or_start(address, log=folder / "ray.log"):
        pass


@pytest.fixture
def listener():
    """A port where something listens that is no Ray cluster; what it answers is up to the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "connection refused"),
        ("head", "an address has the form host:port"),
        ("head.invalid:6379", "not known|resolution"),
    ],
)
def test_an_address_where_nothing_answers_is_named_with_the_way_out(tmp_path, address, reason):
    with pytest.raises(ClusterError, match=rf"no Ray cluster answers at {address}: .*({reason})") as caught:
        attach(address, tmp_path)
    assert "ray start --head" in str(caught.value)
    assert "leave the address empty" in str(caught.value)


def test_a_service_that_is_not_ray_is_told_apart(tmp_path, listener):
    def answer():
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ClusterError, match="something else listens there"):
        attach(address, tmp_path)
    thread.join()


def test_a_service_that_says_nothing_is_not_waited_for(tmp_path, listener, monkeypatch):
    monkeypatch.setattr("clusters.answering.SECONDS", 0.1)
    with pytest.raises(ClusterError, match="something else listens there"):
        attach(f"127.0.0.1:{listener.getsockname()[1]}", tmp_path)


def test_the_address_of_a_client_server_is_refused_with_what_to_give_instead(tmp_path):
    with pytest.raises(ClusterError, match=r"ray://head:10001 is the address of a Ray client server.*ray job submit"):
        attach("ray://head:10001", tmp_path)


def test_the_object_store_holds_the_data_but_never_more_than_its_share_of_memory():
    assert store_bytes(memory=100 * GIB, data=3 * GIB) == 5 * GIB
    assert store_bytes(memory=10 * GIB, data=3 * GIB) == 3 * GIB


@pytest.mark.parametrize("deep", [False, True])
def test_rays_sockets_lie_where_a_socket_may_lie_however_deep_the_temporary_folder_is(tmp_path, monkeypatch, deep):
    asked = tmp_path / "a-folder-far-below-where-temporary-files-are" if deep else Path("/tmp")
    asked.mkdir(exist_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", str(asked))
    with scratch_folder() as folder:
        assert folder.parent == Path("/tmp")
        longest = folder / "session_2026-12-31_23-59-59_999999_4194304" / "sockets" / "plasma_store"
        assert len(str(longest)) + LONGEST - len("/tmp") <= 107
    assert not folder.exists()


START = """
@ray.remote(max_restarts=0)
class Doomed:
    def say(self): print("hello from a worker")
    def die(self): os.kill(os.getpid(), signal.SIGKILL)

with attach_or_start(None, log=Path(sys.argv[1]), cpus=1, dashboard=False) as cluster:
    print("started", cluster.started, [node.cpus for node in cluster.nodes], repr(cluster.dashboard))
    logging.getLogger("ray._private.worker").error("Unhandled error of a call that was given up")
    doomed = Doomed.remote()
    ray.get(doomed.say.remote())
    try:
        ray.get(doomed.die.remote())
    except ray.exceptions.RayActorError:
        print("died")
    raise SystemExit(7)
"""


def test_a_cluster_has_a_token_of_its_own_where_the_home_folder_cannot_be_written(tmp_path, monkeypatch):
    """Ray asks everyone who connects for a token, which it keeps in ~/.ray; /proc takes no folder, not even of root."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    done = run(
        "with attach_or_start(None, log=Path(sys.argv[1]), cpus=1, dashboard=False) as cluster:\n"
        "    token = ray.remote(lambda: os.environ['RAY_AUTH_TOKEN'])\n"
        "    print(ray.get(token.remote()) == os.environ['RAY_AUTH_TOKEN'])\n"
        "print('RAY_AUTH_TOKEN' in os.environ)",
        tmp_path / "ray.log",
    )
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


def test_a_started_cluster_is_silent_and_keeps_what_its_workers_printed_even_after_an_error(tmp_path):
    log = tmp_path / "logs" / "ray.log"
    done = run(START, log)
    assert done.returncode == 7
    first, second = done.stdout.splitlines()
    assert first == "started True [1.0] ''"
    assert second == "died"
    assert done.stderr == ""
    assert "hello from a worker" in log.read_text()
    assert "ERROR ray._private.worker: Unhandled error of a call that was given up" in log.read_text()


ATTACH = """
with attach_or_start(sys.argv[1] or None, log=Path(sys.argv[2])) as cluster:
    print(cluster.started, cluster.address, [node.cpus for node in cluster.nodes])
    logging.getLogger("ray._private.worker").error("Unhandled error of a call that was given up")
"""


@pytest.mark.parametrize("how", ["address", "RAY_ADDRESS"])
def test_a_cluster_that_is_there_is_joined_and_left_running(ray_cluster, tmp_path, monkeypatch, how):
    if how == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    done = run(ATTACH, ray_cluster.address if how == "address" else "", tmp_path / "ray.log")
    assert done.stdout == f"False {ray_cluster.address} [4.0]\n"
    assert done.stderr == ""
    assert "Unhandled error of a call that was given up" in (tmp_path / "ray.log").read_text()
    assert ray.get(ray.remote(num_cpus=0)(lambda: "still there").remote()) == "still there"


REFUSED = """
import functools
import ray._private.services as services
from clusters.session import ClusterError
if len(sys.argv) > 3:
    services.find_gcs_addresses = functools.cache(set)
    services.find_bootstrap_address = lambda folder: sys.argv[3] or None
try:
    with attach_or_start(sys.argv[1], log=Path(sys.argv[2])):
        print("attached")
except ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("mode", "token"), [("token", "b" * 64), ("token", None), ("disabled", None)], ids=["wrong", "none", "disabled"]
)
def test_a_wrong_token_is_told_at_once_with_where_the_right_belongs(ray_cluster, tmp_path, monkeypatch, mode, token):
    """`ray.init` is not reached: it would try for half a minute."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    done = run("ray.init = None\n" + REFUSED, ray_cluster.address, tmp_path / "ray.log")
    place = ray_cluster.address
    assert done.stdout.startswith(f"the Ray cluster at {place} cannot be joined: this process has no token, or another")
    assert "RAY_AUTH_TOKEN or ~/.ray/auth_token and set RAY_AUTH_MODE=token" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("left_behind", "said"),
    [
        ("", "address auto: no Ray cluster runs on this machine. Start one with `ray start --head`"),
        ("127.0.0.2:1", "no Ray cluster answers at 127.0.0.2:1, where auto leads: connection refused. Start one with"),
    ],
    ids=["none", "one that ended without a word"],
)
def test_auto_where_no_cluster_runs_is_told_at_once(tmp_path, monkeypatch, left_behind, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = run("ray.init = None\n" + REFUSED, "auto", tmp_path / "ray.log", left_behind)
    assert done.stdout.startswith(said)
    assert "leave the address empty" in done.stdout


def test_a_process_that_is_attached_already_stays_attached(ray_cluster, tmp_path):
    with attach_or_start(None, log=tmp_path / "ray.log") as cluster:
        assert (cluster.address, cluster.started) == (ray_cluster.address, False)
    with attach_or_start(ray_cluster.address, log=tmp_path / "ray.log") as cluster:
        assert cluster.address == ray_cluster.address
    with pytest.raises(ClusterError, match=f"attached to {ray_cluster.address} already"):
        attach(f"localhost:{ray_cluster.address.split(':')[1]}", tmp_path)
    assert ray.is_initialized()


def test_a_quiet_block_sends_what_compiled_code_prints_to_the_log(tmp_path, capfd):
    log = tmp_path / "ray.log"
    with redirect_all_output(log):
        os.write(1, b"one\n")
        os.write(2, b"two\n")
    os.write(2, b"three\n")
    assert log.read_text() == "one\ntwo\n"
    assert capfd.readouterr().err == "three\n"


def test_what_rays_own_threads_print_goes_to_the_log_and_everything_else_to_the_terminal(tmp_path, capsys):
    log = tmp_path / "ray.log"
    with redirect_ray_output(log):
        thread = threading.Thread(target=print, args=("from ray",), name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("from us")
    print("afterwards")
    assert capsys.readouterr().out == "from us\nafterwards\n"
    assert log.read_text() == "from ray\n"


def test_what_workers_printed_is_collected_and_nothing_else(tmp_path):
    logs = tmp_path / "session" / "logs"
    logs.mkdir(parents=True)
    for name, text in {"worker-1.out": "hello\n", "worker-2.err": "", "raylet.out": "chatter\n"}.items():
        (logs / name).write_text(text)
    collect(tmp_path / "session", tmp_path / "ray.log")
    assert (tmp_path / "ray.log").read_text() == "\n--- worker-1.out\nhello\n"
