"""A command sent to a cluster as a Ray job: what travels with it, how it is followed and stopped, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import ray.exceptions
import requests
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.job_submission import JobStatus, JobSubmissionClient

from clusters.answering import SECONDS
from clusters.environment import variable
from clusters.session import ClusterError

EXCLUDES = (
    ".?*",  # hidden files, but not `.` itself
    "__pycache__/",
    "*.egg-info/",
    "/build/",
    "/dist/",
    "/venv/",
    "/data/",
    "/runs/",
    "/mlruns/",
    "/mlartifacts/",
    "mlflow.db",
    "/docs/",
    "/tests/",
    "/benchmarks/",
)
"""Patterns of what does not travel with the working directory, as gitignore has them; the repository's .rayignore says
the same to `ray job submit`. What a .rayignore or .gitignore of the user's own names does not travel either."""

STOP_SECONDS = 60
"""A job that is stopped has this long to write down where it is; then it is killed."""

ANSWER_SECONDS = 30.0
"""A dashboard on a busy machine has this long for its first answer."""

_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
"""Ray kills three seconds after its signal. SIGINT would be lost where Ray was started in the background of a script:
shells have such commands, and so all their children, ignore it."""


class SubmittedJob:
    """A job on a cluster.

    Attributes:
        id: by which `ray job` knows it.
    """

    def __init__(self, client: JobSubmissionClient, id: str) -> None:
        self.id = id
        self._client, self._length = client, 0

    def follow(self, tell: Callable[[str], None]) -> int:
        """Tell what the job prints, as it prints it, until it has ended; its command's exit code.

        A connection that breaks is made anew. Called again, it goes on where it was; nothing is told twice.
        """
        while True:
            asyncio.run(self._tail(tell))
            details = self._client.get_job_info(self.id)
            if JobStatus(details.status).is_terminal():
                break
        # The last lines come too late for whoever follows, where the job ends before they were sent.
        tell(self._client.get_job_logs(self.id)[self._length :])
        if details.driver_exit_code is not None:
            return int(details.driver_exit_code)
        if details.status == JobStatus.SUCCEEDED:
            return 0
        tell(f"job {self.id}: {details.message}\n")  # its command never ran, or did not end by itself
        return 1

    async def _tail(self, tell: Callable[[str], None]) -> None:
        """Tell the log from where it was told last, until it ends or the connection breaks."""
        seen = 0
        try:
            async for text in self._client.tail_job_logs(self.id):
                seen += len(text)
                new, self._length = seen - self._length, max(seen, self._length)
                if new > 0:
                    tell(text[-new:])
        except (RuntimeError, OSError):
            await asyncio.sleep(1.0)

    def stop(self) -> None:
        """Have its command stopped in good order, as by Ctrl-C."""
        self._client.stop_job(self.id)


def submit(words: Sequence[str], folder: Path, address: str) -> SubmittedJob:
    """Have a cluster perform a command.

    Args:
        words: the command and its arguments. Ray hands them to a shell, so that each is quoted here.
        folder: what the command shall find as its current folder; but for `EXCLUDES`.
        address: of the cluster's dashboard, as http://HOST:8265.

    Raises:
        ClusterError: within seconds, where no dashboard answers, or the cluster takes no job from us.
    """
    _require_dashboard(address)
    _silence_loggers()
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    environment = {
        "working_dir": str(folder),
        "excludes": list(EXCLUDES),
        "env_vars": _ENVIRONMENT,
    }
    try:
        with variable("RAY_API_SERVER_ADDRESS", address):  # Ray's job client prefers it to what it is given
            client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(words), runtime_env=environment)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {address} takes no job from us: this process has no token, or another than the cluster. "
            "Put the cluster's own into RAY_AUTH_TOKEN or ~/.ray/auth_token and set RAY_AUTH_MODE=token"
        ) from error
    except (RuntimeError, ConnectionError, ValueError, requests.RequestException) as error:
        raise ClusterError(f"the cluster at {address} takes no job from us: {error}{_hint(error)}") from error
    return SubmittedJob(client, job)


def _hint(error: Exception) -> str:
    """Words on the way out, as far as Ray does not say it itself; empty elsewhere."""
    if "No available agent" not in str(error):
        return ""
    return (
        " Where that stays so, another Ray on the head's machine has the port of its agent (52365): start this one by "
        "`ray start --head --dashboard-agent-listen-port=PORT`"
    )


def _silence_loggers() -> None:
    """Silence Ray, which logs every file that does not travel, and every connection that ends."""
    logger = logging.getLogger("ray")
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a Ctrl-C breaks a connection off without a farewell


def _require_dashboard(address: str) -> None:
    """Raise ClusterError unless a dashboard answers; a request would wait for minutes."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(
            f"{address} is not the address of a cluster's dashboard, which has the form http://HOST:8265"
        )
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=SECONDS).close()
        requests.get(f"{address}/api/version", timeout=ANSWER_SECONDS)
    except OSError as error:  # those of requests are such
        raise ClusterError(
            f"no dashboard answers at {address}: {(error.strerror or str(error)).lower()}. `ray start --head` prints "
            "its address; where it listens on the head's loopback alone, lead a port there: "
            "ssh -N -L 8265:127.0.0.1:8265 HEAD, and give --address http://127.0.0.1:8265"
        ) from error
