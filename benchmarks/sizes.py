"""Growing sizes, each in a process of its own; where memory runs out, the size that fitted is named."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from benchmarks.figures import Figure, tell

Measure = Callable[[int], Sequence[Figure]]

_WORDS = ("MemoryError", "OutOfMemoryError", "ObjectStoreFullError", "OutOfDiskError", "can't allocate memory")
"""Words of Python, Ray and torch for it in a traceback."""


class TooLarge(RuntimeError):
    """Memory ran out at a size; the message names the size before it, which fitted."""


def grow(module: str, doc: str | None, sizes: Sequence[int], words: Callable[[int], str], measure: Measure) -> int:
    """The command of a benchmark of growing sizes: one size here, or each in a process of its own; its exit code.

    Args:
        measure: the figures of a size.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="this size alone, in this process")
    asked = parser.parse_args()
    if asked.size:
        tell(measure(asked.size))
        return 0
    try:
        for printed in run_each(module, sizes, words):
            print(printed, end="", flush=True)
    except (TooLarge, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_each(module: str, sizes: Sequence[int], words: Callable[[int], str]) -> Iterator[str]:
    """Run `python -m MODULE --size SIZE` for one size after the other, and yield what it prints.

    Args:
        words: a size for people, as `1,000 clients`.

    Raises:
        TooLarge: memory ran out.
        RuntimeError: a process failed otherwise; its last line is the message.
    """
    fitted = ""
    for size in sizes:
        with tempfile.TemporaryFile("w+") as errors:
            command = [sys.executable, "-m", module, "--size", str(size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            errors.seek(0)
            output = errors.read().strip()
        if out_of_memory(done.returncode, output):
            raise TooLarge(f"memory ran out with {words(size)}; {fitted or 'nothing smaller'} fitted")
        if done.returncode:
            raise RuntimeError(f"with {words(size)}: {output.rpartition(chr(10))[2] or done.returncode}")
        fitted = words(size)
        yield done.stdout


def out_of_memory(code: int, output: str) -> bool:
    """Whether a process ended because memory ran out: it says so, or was killed, as the kernel does then.

    Args:
        code: its exit code, negative for a signal.
        output: its stderr.
    """
    return code == -signal.SIGKILL or (code != 0 and any(word in output for word in _WORDS))
