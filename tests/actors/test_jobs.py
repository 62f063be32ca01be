"""Jobs that share a store, some after others, here and side by side on Ray."""

from __future__ import annotations

import pytest

from actors.jobs.job import Job, Share, one_by_one, ready_jobs
from tests.actors.jobs_of_tests import count_others, die, fail, fetch, keep

SHARED = {"number": 7}
SHARE = Share(cpus=1.0, gpus=0.0, memory=200 * 2**20)


def job(name, call=fetch, group="a", after=None):
    return Job(name, group, after, call)


def test_a_job_waits_for_the_one_it_comes_after_and_for_no_other():
    first, second, third = job("first"), job("second", after="first"), job("third")
    assert ready_jobs([first, second, third], set()) == [first, third]
    assert ready_jobs([second], {"first"}) == [second]


def here(jobs, folder):
    return {ended.name: ended for ended in one_by_one(jobs, SHARED, folder, lambda told: None)}


def on_ray(jobs, folder, shared=SHARED, share=SHARE):
    from actors.jobs.side_by_side import side_by_side

    return {ended.name: ended for ended in side_by_side(jobs, shared, folder, share, lambda told: None)}


@pytest.fixture(params=["here", "on ray"])
def perform(request, tmp_path):
    if request.param == "here":
        return lambda jobs: here(jobs, tmp_path)
    request.getfixturevalue("ray_cluster")
    return lambda jobs: on_ray(jobs, tmp_path)


def test_what_a_job_keeps_is_found_by_later_ones_of_its_group_alone(perform):
    ended = perform([job("keep", keep), job("same", after="keep"), job("other", group="b", after="keep")])
    assert ended["same"].value == (7, "kept")
    assert ended["other"].value == (7, None)


def test_a_job_that_raises_is_told_with_its_traceback_and_the_others_go_on(perform):
    ended = perform([job("fail", fail), job("fine", after="fail")])
    assert ended["fail"].error == "ValueError: sour grapes"
    assert "in fail" in ended["fail"].traceback
    assert ended["fine"].value == (7, None)


def test_a_job_whose_process_dies_again_and_again_is_told_and_the_others_go_on(ray_cluster, tmp_path):
    ended = on_ray([job("die", die), job("fine", after="die")], tmp_path)
    assert ended["die"].error == "its process was lost"
    assert ended["fine"].value == (7, None)


def test_each_job_has_a_process_of_its_own(ray_cluster, tmp_path):
    ended = on_ray([job("one", keep), job("two", keep), job("three", keep, after="one")], tmp_path)
    assert len({end.value for end in ended.values()}) == 3


def test_no_more_jobs_are_under_way_than_there_is_room_for_while_some_wait_for_the_store(ray_cluster, tmp_path):
    """Two of 2 CPUs on a cluster of 4."""
    marks = tmp_path / "marks"
    marks.mkdir()
    jobs = [job(f"job {n}", count_others) for n in range(5)]
    ended = on_ray(jobs, tmp_path, {"folder": marks}, Share(cpus=2.0, gpus=0.0, memory=100 * 2**20))
    assert max(end.value for end in ended.values()) == 2
