"""What a machine counts."""

import os

import pytest

from clusters.nodes import usable_cpus


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("99999999900000 100000", None)],
)
def test_a_container_with_less_time_than_the_machine_has_counts_fewer_cpus(tmp_path, quota, expected):
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota}\n")
    assert usable_cpus(file) == (expected or os.cpu_count())


def test_outside_a_container_all_cpus_count(tmp_path):
    assert usable_cpus(tmp_path / "missing") == os.cpu_count()
