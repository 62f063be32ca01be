"""Looks at the machine: what a run needs, whether it is there, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from engine.units import count_text

State = Literal["ok", "warn", "fail"]

GIB = 1024**3
RAY_SECONDS = 120
"""Seconds that Ray may take to start before the doctor gives it up; 5 to 7 are usual."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        state: `fail` where no run can work, `warn` where some cannot.
        found: what is there.
        remedy: the way out, "" where none is needed.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def tree(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


_REQUIRED = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\d.]+)$")
"""A requirement of the project's metadata: the package, perhaps with extras, and its lower bound."""


def packages() -> Finding:
    """Every package that the project requires by its own metadata, and whether it is as new as it must be."""
    remedy = "run `make install`, or pip install -e ."
    try:
        required = importlib.metadata.requires("tessera-fl") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "warn", "tessera-fl is not installed, so what it requires is not known", remedy)
    found, wrong = [], {}
    for name, least in (match.groups() for match in map(_REQUIRED.match, required) if match):
        version = installed_version(name)
        found.append(f"{name} {version}")
        if version is None:
            wrong[name] = f"{name} is not installed"
        elif _numbers(version) < _numbers(least):
            wrong[name] = f"{name} {version} is older than {least}"
    if wrong == {"ray": "ray is not installed"}:
        return Finding("packages", "warn", wrong["ray"], f"without it only runner.kind: inline works; {remedy}")
    if wrong:
        return Finding("packages", "fail", ", ".join(wrong.values()), remedy)
    return Finding("packages", "ok", ", ".join(found))


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu is (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def torch() -> Finding:
    import torch

    values = torch.ones(2, 2) @ torch.ones(2, 2)
    return Finding(
        "torch",
        "ok",
        f"{torch.__version__}, {count_text(torch.get_num_threads(), 'thread')}, computes {values[0, 0]:g}",
    )


def torchvision() -> Finding:
    from algorithms.nets.vision import torchvision as imported

    version = imported().__version__
    try:
        import torch

        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (AttributeError, RuntimeError, NotImplementedError):
        return Finding(
            "torchvision",
            "ok",
            f"{version}; its compiled operators do not load beside this torch, and nothing here uses them",
        )
    return Finding("torchvision", "ok", f"{version} with its compiled operators")


_START_RAY = (
    "import time, ray; begun = time.perf_counter(); "
    "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR'); "
    "assert ray.get(ray.remote(lambda: 7).remote()) == 7; print(f'{time.perf_counter() - begun:.1f}'); ray.shutdown()"
)


def ray() -> Finding:
    """Whether a Ray of one CPU starts and performs a task; in a process of its own, which can be ended."""
    if installed_version("ray") is None:
        return Finding(
            "ray", "warn", "not installed", "pip install 'ray[default,data,train]', or use runner.kind: inline"
        )
    remedy = "look into the logs under /tmp/ray/session_latest/logs, or use runner.kind: inline"
    command = [sys.executable, "-c", _START_RAY]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RAY_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("ray", "fail", f"did not start within {RAY_SECONDS} s", remedy)
    if done.returncode:
        return Finding(
            "ray", "fail", f"did not start: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", remedy
        )
    return Finding("ray", "ok", f"started and performed a task in {done.stdout.strip()} s")


def cores() -> Finding:
    from clusters.grants import usable_cpus

    return Finding("cores", "ok", f"{usable_cpus()} usable of {os.cpu_count()}")


def processor() -> Finding:
    from clusters import bits

    lacking = bits.shortcoming_here()
    return Finding(
        "processor",
        "ok",
        f"{bits.processor()}; bits: {f'native alone, portable needs {lacking}' if lacking else 'any'}",
    )


def memory() -> Finding:
    from clusters.grants import free_memory, total_memory

    free = free_memory()
    found = f"{free / GIB:.1f} GiB free of {total_memory() / GIB:.1f}"
    if free < 2 * GIB:
        return Finding("memory", "warn", found, "free some, or use few hosts (runner.hosts: 1); Ray needs about 2 GiB")
    return Finding("memory", "ok", found)


def gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "ok", "none that torch can use; networks compute on the CPU (runner.device: cpu)")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Finding("gpu", "ok", ", ".join(f"{d.name} with {d.total_memory / GIB:.0f} GiB" for d in devices))


def data() -> Finding:
    place = os.environ.get("TESSERA_DATA")
    if not place:
        known = "digits, sklearn:NAME and generated:sentences need no files"
        remedy = f"{known}; for presets of other data: export TESSERA_DATA=FOLDER"
        return Finding("data", "warn", "TESSERA_DATA is not set", remedy)
    if not Path(place).is_dir():
        return Finding("data", "fail", f"TESSERA_DATA = {place} is no folder", "name the folder that holds mnist/, ...")
    sets = data_sets(Path(place))
    if not sets:
        remedy = "a data set is a folder in it, or further down, with train.parquet and test.parquet, or a Parquet file"
        return Finding("data", "warn", f"TESSERA_DATA = {place} holds no data set", remedy)
    return Finding("data", "ok", f"{', '.join(sets)} in {place}")


def data_sets(place: Path) -> list[str]:
    """Data sets by their path in a folder, at most three levels down: folders with a training half, and Parquet files
    in others."""
    patterns = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    files = [path.relative_to(place) for pattern in patterns for path in place.glob(pattern)]
    folders = {path.parent for path in files if path.name == "train.parquet" or path.match("train-*.parquet")}
    return sorted(path.as_posix() for path in {*folders, *(path for path in files if path.parent not in folders)})


def space() -> Finding:
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free in {place}"
    if free < 2 * GIB:
        return Finding("temporary space", "warn", found, "Ray spills and logs there; free some or set TMPDIR")
    return Finding("temporary space", "ok", found)


def writing() -> Finding:
    """Whether a run's folder can be made below the current folder."""
    here = Path.cwd()
    try:
        with tempfile.TemporaryDirectory(dir=here):
            return Finding("writing", "ok", f"{here} can be written to")
    except OSError as error:
        return Finding("writing", "fail", f"{here}: {error.strerror}", "go to another folder, or use --out")


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    packages,
    torch,
    torchvision,
    ray,
    cores,
    processor,
    memory,
    gpu,
    data,
    space,
    writing,
)


def examine(check: Callable[[], Finding]) -> Finding:
    """A check's finding; a check that fails in a way of its own is a finding too."""
    try:
        return check()
    # Whatever a broken installation raises is what the doctor is asked about.
    except Exception as error:
        return Finding(check.__name__, "fail", f"{type(error).__name__}: {error}", "run `make install` again")
