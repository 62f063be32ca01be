"""Freed memory is used again instead of being given back to the system and taken anew, page by page; and pages are
huge where the system has such."""

import subprocess
import sys
from pathlib import Path

import pytest

TURNS, BLOCKS, BLOCK = 10, 3, 20 * 2**20

TAKE_AND_FREE = f"""
import ctypes, resource, sys
from actors.process import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TURNS}):
    blocks = [libc.malloc({BLOCK}) for _ in range({BLOCKS})]
    for block in blocks:
        ctypes.memset(block, 1, {BLOCK})
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", TAKE_AND_FREE, how], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="this is how glibc behaves")
def test_what_was_freed_is_used_again():
    """Of itself, a process meets the pages of its blocks in every turn, else in the first."""
    assert page_faults("kept") < 0.2 * page_faults("of itself")


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

FILL = """
import resource, sys
import torch
torch.set_num_threads(1)
from actors.process import take_huge_pages
if sys.argv[1] == "huge":
    take_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""64 MiB: 32 huge pages, 16,384 of the usual 4 KiB."""


@pytest.mark.skipif(
    not HUGE.exists() or "[madvise]" not in HUGE.read_text(), reason="the system grants no huge pages, or all of them"
)
def test_large_tensors_lie_on_huge_pages():
    def pages(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FILL, how], capture_output=True, check=True).stdout)

    assert pages("usual") > 16_000
    assert pages("huge") < 2_000
