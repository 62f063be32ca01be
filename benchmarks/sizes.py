"""Growing sizes, each in a process of its own; where memory runs out, the size that fitted is named."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

_WORDS = ("MemoryError", "OutOfMemoryError", "ObjectStoreFullError", "OutOfDiskError", "can't allocate memory")
"""How Python, Ray and torch name it in a traceback."""


class TooLarge(RuntimeError):
    """Memory ran out at a size; the message names the size before it, which fitted."""


def run_each(module: str, sizes: Sequence[int], words: Callable[[int], str]) -> Iterator[str]:
    """What `python -m MODULE --size SIZE` prints, for one size after the other.

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
            said = errors.read().strip()
        if out_of_memory(done.returncode, said):
            raise TooLarge(f"memory ran out with {words(size)}; {fitted or 'nothing smaller'} fitted")
        if done.returncode:
            raise RuntimeError(f"with {words(size)}: {said.rpartition(chr(10))[2] or done.returncode}")
        fitted = words(size)
        yield done.stdout


def out_of_memory(code: int, said: str) -> bool:
    """Whether a process ended because memory ran out: it says so, or was killed, as the kernel does then.

    Args:
        code: its exit code, negative for a signal.
        said: its stderr.
    """
    return code == -signal.SIGKILL or (code != 0 and any(word in said for word in _WORDS))
