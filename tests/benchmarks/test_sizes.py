"""Growing sizes, each in a process of its own."""

import pytest

from benchmarks.sizes import TooLarge, out_of_memory, run_each

GROWS = """
import os, signal, sys
size = int(sys.argv[2])
if size == 100:
    {end}
print(size)
"""


def sizes_fitting(tmp_path, monkeypatch, end):
    """Sizes of 1, 10, 100, as far as they come, and what is raised then."""
    (tmp_path / "grows.py").write_text(GROWS.format(end=end))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    printed = []
    with pytest.raises(RuntimeError) as caught:
        printed.extend(run_each("grows", (1, 10, 100), lambda size: f"{size} clients"))
    return caught.value


@pytest.mark.parametrize("end", ["raise MemoryError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_where_memory_runs_out_the_size_that_fitted_is_named(tmp_path, monkeypatch, end):
    error = sizes_fitting(tmp_path, monkeypatch, end)

    assert isinstance(error, TooLarge)
    assert str(error) == "memory ran out with 100 clients; 10 clients fitted"


def test_another_error_is_told_in_its_own_words(tmp_path, monkeypatch):
    error = sizes_fitting(tmp_path, monkeypatch, "sys.exit('no room on the disk')")

    assert not isinstance(error, TooLarge)
    assert str(error) == "with 100 clients: no room on the disk"


def test_a_process_that_ended_well_did_not_run_out_of_memory_whatever_it_said():
    assert not out_of_memory(0, "caught a MemoryError")
