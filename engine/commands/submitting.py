"""A run as a job on a cluster: the same command there, its output here, its exit code, and its folder if asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from clusters.submission import STOP_SECONDS, SubmittedJob
from clusters.submission import submit as submit_job
from engine.config import load, preset_names
from engine.errors import UserError
from engine.store.places import PlaceError, fetch, is_uri, refuse_taken
from tessera_fl import put_own_code_last


class SubmitError(UserError):
    """A run that cannot be sent; the message names the value and the way out."""


def submit(
    configuration: str,
    overrides: Sequence[str],
    address: str,
    out: str,
    fetch_to: Path | None,
    tell: Callable[[str], None],
) -> int:
    """Run a configuration on a cluster, as `ray job submit --working-dir . -- python -m tessera_fl run ...` does.

    Args:
        address: of the cluster's dashboard.
        out: where the job keeps the run's folder: an absolute path there, or a URI.
        fetch_to: where the run's folder is copied to afterwards; not at all where None.
        tell: takes what the job prints.

    Returns:
        The exit code of the run.

    Raises:
        UserError and its like: before anything is sent, for what a person can put right.
    """
    here = _folder()
    put_own_code_last(str(here))  # where the job, too, finds what the configuration names as pkg.module:function
    load(configuration, overrides)
    if fetch_to is not None:
        refuse_taken(fetch_to)
    words = command(_remote_configuration(configuration, here), overrides, _place(out))
    job = submit_job(words, here, address)
    tell(
        f"job: {job.id}; Ctrl-C stops it, and to look at it from elsewhere: "
        f"ray job logs --address {address} --follow {job.id}\n"
    )
    code = _follow(job, tell)
    if fetch_to is not None:
        _fetch(out, fetch_to, code, tell)
    return code


def command(configuration: str, overrides: Sequence[str], out: str) -> list[str]:
    """The job's command, word by word; by the name that no folder which travels with it takes."""
    sets = [word for override in overrides for word in ("--set", override)]
    return ["python", "-m", "tessera_fl", "run", *sets, "--out", out, "--", configuration]


def _folder() -> Path:
    """The current folder, which travels."""
    here = Path.cwd()
    if here in (Path.home(), Path(here.anchor)):
        raise SubmitError(
            f"the current folder travels with a job, and {here} is too much: call this in a folder of its own"
        )
    return here


def _remote_configuration(configuration: str, here: Path) -> str:
    """The configuration as the job finds it: a preset's name, or a file in the folder that travels."""
    if configuration in preset_names():
        return configuration
    path = Path(configuration).resolve()
    if not path.is_relative_to(here):
        raise SubmitError(
            f"{configuration} lies outside of {here}, and only the current folder travels with a job: "
            "call the command where the file lies, or copy it here"
        )
    return str(path.relative_to(here))


def _place(out: str) -> str:
    if is_uri(out) or PurePosixPath(out).is_absolute():
        return out
    raise SubmitError(
        f"--out {out}: a job's own folder is gone when the job ends; name an absolute path on storage that the "
        "cluster's nodes share, or a URI (s3://, gs://, abfs://, ...)"
    )


def _follow(job: SubmittedJob, tell: Callable[[str], None]) -> int:
    try:
        return job.follow(tell)
    except KeyboardInterrupt:
        job.stop()
        tell(f"job {job.id} is told to stop, and has {STOP_SECONDS} s to write down where it is\n")
        job.follow(tell)
        raise


def _fetch(out: str, folder: Path, code: int, tell: Callable[[str], None]) -> None:
    """The run's folder; of a run that failed, what there is of it."""
    try:
        fetch(out, folder)
    except PlaceError:
        if code == 0:
            raise
    else:
        tell(f"fetched: {folder}\n")
