"""A Ray cluster to run on: one that is there, or one of our own on this machine."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import services  # Ray has no public call that asks a cluster without trying again and again
from ray._private.authentication.authentication_token_setup import (
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from clusters.answering import unreachable_reason
from clusters.bits import Bits, worker_options
from clusters.chatter import collect, keep_ray_handlers, redirect_all_output, redirect_ray_output
from clusters.environment import variable
from clusters.grants import total_memory
from clusters.nodes import Node, nodes_of
from clusters.sweeping import scratch_folder
from tessera_fl import HOME, PACKAGES, worker_setup

STORE_BYTES = 2 * 2**30
"""Size of the object store beside the data: room for messages, replies and memories. Ray spills what is more to
disk."""

STORE_SHARE = 0.3
"""Share of the machine's memory that the object store never exceeds."""

_START_ONE = (
    "Start one with `ray start --head` and give the address it prints, or leave the address empty to run on a cluster "
    "started for this run alone"
)


class ClusterError(RuntimeError):
    """No cluster to run on; the message names the address and the way out."""


@dataclass(frozen=True)
class Cluster:
    """A cluster this process is attached to.

    Attributes:
        address: host:port, for others to attach to.
        started: whether it was started here and ends with this process.
        nodes: its machines when it was attached to.
        log: file with Ray's own output; workers' output is added when a cluster that was started here ends.
        dashboard: host:port, empty where there is none.
    """

    address: str
    started: bool
    nodes: tuple[Node, ...]
    log: Path
    dashboard: str


@contextmanager
def attach_or_start(
    address: str | None,
    *,
    log: Path,
    cpus: int | None = None,
    gpus: int | None = None,
    data_bytes: int = 0,
    dashboard: bool = True,
    bits: Bits = "native",
) -> Iterator[Cluster]:
    """Attach to a cluster, or start one on this machine and end it afterwards, leaving no process and no file.

    Args:
        address: host:port of a cluster's head, or `auto` for the one that runs on this machine. Where None: the one
            named by RAY_ADDRESS, as inside a submitted job; else one is started.
        log: file for Ray's own output, which is kept out of the terminal.
        cpus, gpus: that a started cluster counts; what the machine has where None.
        data_bytes: what will lie in the object store all the time.
        dashboard: whether a started cluster has one. Ray Train's controller prints a failure every second where there
            is none, and a cluster starts a second sooner without.
        bits: that every process computes which works here for this one.

    Raises:
        ClusterError: within seconds, where no cluster answers at the address, or it cannot be joined.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    address = address or os.environ.get("RAY_ADDRESS") or None
    with redirect_ray_output(log):
        if ray.is_initialized():
            yield _current_cluster(address, log)
        else:
            environment = _worker_environment(bits)
            own = (
                _join(address, environment, log)
                if address
                else _start_own(cpus, gpus, data_bytes, dashboard, environment, log)
            )
            with own as cluster:
                yield cluster


def _current_cluster(address: str | None, log: Path) -> Cluster:
    """The cluster that somebody in this process has attached to before, as in a notebook. It is left as it is."""
    there = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", there):
        _reachable_address(address)
        raise ClusterError(f"{address} cannot be joined: this process is attached to {there} already")
    _refuse_other_packages(Path.cwd())
    return Cluster(there, False, nodes_of(ray.nodes()), log, "")


def _refuse_other_packages(folder: Path) -> None:
    """Raise ClusterError where a folder of the user's own goes by the name of one of our packages: there the workers of
    a Ray that others have started look first."""
    wrong = [folder / name for name in PACKAGES if folder != Path(HOME) and (folder / name).is_dir()]
    if wrong:
        raise ClusterError(
            f"{wrong[0]} would take the place of a package of Tessera in the workers of the Ray that this process has "
            "started: end it with ray.shutdown(), and the run starts one that knows better; or rename the folder"
        )


@contextmanager
def _join(address: str, environment: dict[str, Any], log: Path) -> Iterator[Cluster]:
    """Join a running cluster, which stays when this process leaves it."""
    try:
        with redirect_all_output(log):
            info = _attach(address, environment)
        yield _cluster(info, False, log)
    finally:
        with redirect_all_output(log):
            ray.shutdown()


@contextmanager
def _start_own(
    cpus: int | None, gpus: int | None, data_bytes: int, dashboard: bool, environment: dict[str, Any], log: Path
) -> Iterator[Cluster]:
    """Start a cluster for this process alone, and end it afterwards."""
    with scratch_folder() as folder, _token():
        try:
            with (
                redirect_all_output(log),
                variable("TMPDIR", str(folder)),
            ):  # Ray's processes and theirs keep what they write there
                info = _start(cpus, gpus, data_bytes, dashboard, environment, folder)
            yield _cluster(info, True, log)
        finally:
            with redirect_all_output(log):
                ray.shutdown()
            for session in folder.glob("session_2*"):
                collect(session, log)


def _token() -> AbstractContextManager[None]:
    """A block in which a cluster has a token of its own where Ray can keep none in the home folder."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _keeps_token():
        return nullcontext()
    return variable("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _keeps_token() -> bool:
    """Whether Ray's token lies in the home folder, or Ray can put one there."""
    folder = Path.home() / ".ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return (folder / "auth_token").exists() or os.access(folder, os.W_OK)


def _cluster(info: dict[str, Any], started: bool, log: Path) -> Cluster:
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"while Ray runs, more is in {info['session_dir']}/logs\n")
    return Cluster(info["gcs_address"], started, nodes_of(ray.nodes()), log, info["webui_url"] or "")


def _reachable_address(address: str) -> str:
    """Resolve an address to a host:port that answers, at once: `ray.init` would wait two minutes for an answer."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address} is the address of a Ray client server; a run sends too much for it. Give the head's own "
            "address (host:6379) on a machine of the cluster, or send the run there with `ray job submit`"
        )
    found = _on_this_machine() if address == "auto" else address
    reason = unreachable_reason(found)
    if reason:
        place = found if found == address else f"{found}, where {address} leads"
        raise ClusterError(f"no Ray cluster answers at {place}: {reason}. {_START_ONE}")
    return found


def _on_this_machine() -> str:
    """host:port of the cluster that `auto` stands for."""
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise ClusterError(f"address auto: no Ray cluster runs on this machine. {_START_ONE}") from error


def _attach(address: str, environment: dict[str, Any]) -> dict[str, Any]:
    found = _reachable_address(address)
    try:
        _check_token(found, here=address == "auto")
        with _own_sigterm(), keep_ray_handlers():
            context: Any = ray.init(
                address=address, configure_logging=False, log_to_driver=False, runtime_env=environment
            )
        return dict(context.address_info)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be joined: this process has no token, or another than the cluster. "
            "Put the cluster's own into RAY_AUTH_TOKEN or ~/.ray/auth_token and set RAY_AUTH_MODE=token (disabled "
            "where the cluster asks for none), or leave the address empty to run on a cluster of this run's own"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be joined: {str(error).rstrip('.')}. This machine must be one of its "
            "nodes, with the same Python and Ray"
        ) from error


def _check_token(found: str, here: bool) -> None:
    """Show this process's token, as `ray.init` does for half a minute where it is not the cluster's.

    Raises:
        AuthenticationError: there is no token, or another.
    """
    if here:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    GcsClient(address=found)


def _start(
    cpus: int | None, gpus: int | None, data_bytes: int, dashboard: bool, environment: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Ray asks everyone who connects for the token in ~/.ray/auth_token, which it makes where there is none."""
    with _own_sigterm(), keep_ray_handlers():
        context: Any = ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=store_bytes(total_memory(), data_bytes),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            configure_logging=False,
            log_to_driver=False,
            runtime_env=environment,
            _temp_dir=str(folder),
        )
    return dict(context.address_info)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """A block after which SIGTERM is handled as before it, where somebody handles it: `ray.init` takes it for itself,
    and then ends the process whatever it is at."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):
        yield
        return
    try:
        yield
    except SystemExit:  # it came meanwhile
        before(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _worker_environment(bits: Bits) -> dict[str, Any]:
    """Ray's description of its workers: the variables that they start with, and that before anything else they find
    modules as this process does."""
    variables = worker_options(bits).get("runtime_env", {})
    return {**variables, "worker_process_setup_hook": worker_setup(os.getcwd())}


def store_bytes(memory: int, data: int) -> int:
    """Size of the object store of a machine with so many bytes of memory, for a run with so many bytes of data."""
    return min(int(STORE_SHARE * memory), STORE_BYTES + data)
