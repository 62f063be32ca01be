"""The bits of a computation: which kernels libraries choose in a process, and the variables that make it one choice.

torch, MKL, OpenBLAS, numpy and the C library choose kernels by the processor that they find, and kernels round
differently. A process that is started with the variables of `PORTABLE` computes the same bits on every x86-64
processor with AVX2 and FMA. Libraries read the variables when they are loaded, the C library when the process starts:
so nothing can be mended afterwards. Imports nothing but the standard library.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

Bits: TypeAlias = Literal["native", "portable"]
"""`native`: whatever is fastest on the processor that is there. `portable`: the same on all of them."""

MARK = "TESSERA_BITS"
"""Says to a process that it was started for portable bits; `actors.process.set_kernels` reads it."""

PORTABLE: Mapping[str, str] = {
    MARK: "portable",
    # torch's own kernels. Those for AVX2 have their own exponential and its like; those for less call the C library's,
    # which changed between its versions.
    "ATEN_CPU_CAPABILITY": "avx2",
    # The only branch of MKL that gives the same on processors of Intel and of others.
    "MKL_CBWR": "COMPATIBLE",
    # MKL's exp, sqrt and their like heed no MKL_CBWR. These, for SSE4.2, use no instruction whose result is left to the
    # processor's maker, as that of RSQRTPS is. Not documented: the tests hold it for the versions in constraints.txt.
    "MKL_VML_DEBUG_CPU_TYPE": "1",
    # torch is kept from oneDNN, which sizes its blocks, and so its sums, by the processor's caches: this is for others.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # Of numpy, scipy and scikit-learn.
    "OPENBLAS_CORETYPE": "Haswell",
    # numpy's kernels beyond AVX2, by the names of its versions since 1.26; it passes over those that it does not know.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    # The C library's exp, log, sin and their like, which numpy's random numbers use; also by the names before 2.33.
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-FMA_Usable,-FMA4_Usable",
}
"""Variables of a process that computes portable bits."""

_FEATURES = ("avx2", "fma")
"""Features that a processor must have for them, by Linux' names."""

_LEVELS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}

_CPUINFO = Path("/proc/cpuinfo")


class BitsError(RuntimeError):
    """Portable bits cannot be had on this machine; the message says why."""


class ProcessStartError(BitsError):
    """Portable bits cannot be had in this process, but in one that is started for them: see `restart`."""


def require(bits: Bits) -> None:
    """Hold this machine and this process against the bits that are asked of it.

    Raises:
        BitsError: the machine cannot compute them.
        ProcessStartError: the process was started without the variables that it needs.
    """
    if bits == "native":
        return
    if reason := shortcoming_here():
        raise BitsError(f"runner.bits = portable: needs {reason}; leave runner.bits at native here")
    if missing := missing_variables(environment_at_start()):
        words = shlex.join(["env", *(f"{name}={PORTABLE[name]}" for name in missing)])
        raise ProcessStartError(
            "runner.bits = portable: libraries choose their kernels when a process starts, and this one was started "
            f"without the variables for it; start Python as `{words} python ...`, use the command `tessera`, "
            "or leave runner.bits at native"
        )


def shortcoming(system: str, machine: str, flags: Collection[str]) -> str:
    """The shortcomings of a machine for portable bits, in words; "" for none.

    Args:
        flags: of its processor, by Linux' names.
    """
    if system != "Linux" or machine != "x86_64":
        return f"Linux on an x86-64 processor, and this is {system} on {machine}"
    lacking = [name for name in _FEATURES if name not in flags]
    return f"a processor with AVX2 and FMA, and this one lacks {', '.join(lacking)}" if lacking else ""


def shortcoming_here() -> str:
    """See `shortcoming`, of this machine."""
    return shortcoming(platform.system(), platform.machine(), _flags(_cpuinfo()))


def missing_variables(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that a process with this environment lacks for portable bits, or has otherwise."""
    return [name for name, value in PORTABLE.items() if environment.get(name) != value]


def environment_at_start(path: Path = Path("/proc/self/environ")) -> dict[str, str]:
    """The environment this process was started with; what was changed since came too late for its libraries."""
    try:
        entries = os.fsdecode(path.read_bytes()).split("\0")
    except OSError:
        return dict(os.environ)
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def restart() -> NoReturn:
    """Start this process's command anew, in its place, with the variables for portable bits."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **PORTABLE})


def worker_options(bits: Bits) -> dict[str, Any]:
    """Options of a Ray actor or task whose process is to compute these bits; those that it starts inherit them."""
    return {"runtime_env": {"env_vars": dict(PORTABLE)}} if bits == "portable" else {}


def processor() -> str:
    """The kind of processor that this process computes on, in words: processes of one kind compute the same bits.

    Variables that choose kernels, where they are set, belong to it.
    """
    return kind_of(_cpuinfo(), environment_at_start())


def kind_of(cpuinfo: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """See `processor`; `cpuinfo` is what Linux says of one core."""
    name = cpuinfo.get("model name") or platform.processor() or platform.machine()
    parts = [
        re.sub(r"\s+", " ", name),
        *(f"{word} {cpuinfo[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if key in cpuinfo),
        *[level for flag, level in _LEVELS.items() if flag in _flags(cpuinfo)][:1],
    ]
    if not missing_variables(environment):
        return ", ".join([*parts, "portable bits"])
    return ", ".join([*parts, *(f"{key}={environment[key]}" for key in PORTABLE if key in environment)])


def _cpuinfo(path: Path = _CPUINFO) -> dict[str, str]:
    """Linux' description of the first core; {} elsewhere."""
    if not path.exists():
        return {}
    core, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in core.splitlines())}


def _flags(cpuinfo: Mapping[str, str]) -> list[str]:
    return cpuinfo.get("flags", "").split()
