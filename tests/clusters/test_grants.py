"""What the machine grants: affinity and cgroups of both versions count, not what is there."""

import os
import sys

import psutil
import pytest

from clusters.grants import free_memory, total_memory, usable_cpus

MIB = 2**20


def machine(root, groups, files):
    """A file system with a process in these groups, and these files of groups."""
    for path, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_a_quota_of_version_2_counts(tmp_path, eight_cores, quota, cpus):
    assert usable_cpus(machine(tmp_path, "0::/job", {"job/cpu.max": quota})) == cpus


def test_a_quota_of_a_group_above_ours_counts_too(tmp_path, eight_cores):
    files = {"slice/cpu.max": "200000 100000", "slice/job/cpu.max": "max 100000"}
    assert usable_cpus(machine(tmp_path, "0::/slice/job", files)) == 2


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("400000", 4)])
def test_a_quota_of_version_1_counts(tmp_path, eight_cores, quota, cpus):
    files = {"cpu,cpuacct/job/cpu.cfs_quota_us": quota, "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}
    assert usable_cpus(machine(tmp_path, "4:cpu,cpuacct:/job\n2:memory:/job", files)) == cpus


def test_in_a_container_whose_group_is_not_seen_the_topmost_counts(tmp_path, eight_cores):
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert usable_cpus(machine(tmp_path, "1:cpu:/docker/0123", files)) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_of_the_machines_cores_those_count_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_where_there_are_no_groups_the_machine_counts(tmp_path):
    assert total_memory(tmp_path) == psutil.virtual_memory().total
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def test_memory_of_version_2_is_the_smallest_limit_less_what_is_used_and_cannot_be_dropped(tmp_path):
    files = {
        "memory.max": str(600 * MIB),
        "memory.current": str(100 * MIB),
        "job/memory.max": str(400 * MIB),
        "job/memory.current": str(90 * MIB),
        "job/memory.stat": f"anon 5\ninactive_file {30 * MIB}",
    }
    root = machine(tmp_path, "0::/job", files)
    assert total_memory(root) == 400 * MIB
    assert free_memory(root) == (400 - 90 + 30) * MIB


def test_memory_of_version_1(tmp_path):
    files = {
        "memory/job/memory.limit_in_bytes": str(300 * MIB),
        "memory/job/memory.usage_in_bytes": str(200 * MIB),
        "memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    root = machine(tmp_path, "4:memory:/job", files)
    assert total_memory(root) == 300 * MIB
    assert free_memory(root) == 150 * MIB


def test_more_than_the_limit_in_use_leaves_nothing_and_no_less(tmp_path):
    files = {"memory.max": "1000", "memory.current": "3000"}
    assert free_memory(machine(tmp_path, "0::/", files)) == 0
