"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Several test processes with as many threads as cores each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a cluster performs as a job is called `python`: let that be the one which performs the tests.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# How long an example takes says something about the machine, not about the code.
settings.register_profile("tessera", deadline=None)
settings.load_profile("tessera")

WITH_RAY = {
    "actors/test_distillation.py",
    "algorithms/test_mosaic_on_ray.py",
    "clusters/test_leaving_nothing.py",
    "clusters/test_session.py",
    "engine/test_bits_on_ray.py",
    "engine/test_full_store.py",
    "engine/test_lost_node.py",
    "engine/test_resume_on_ray.py",
}
"""Test files that start Ray themselves; the others do it through `ray_cluster`."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray run in one process, one after another: two clusters at a time would fight for two cores, and for
    the one port at which a machine's agent takes jobs."""
    here = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(here).as_posix()
        if "ray_cluster" in getattr(item, "fixturenames", ()) or file in WITH_RAY:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A Ray cluster of 4 logical CPUs on this machine, started once for all tests that ask for it."""
    session = pytest.importorskip("clusters.session", reason="Ray is not installed", exc_type=ImportError)
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    with session.attach_or_start(None, log=log, cpus=4) as cluster:
        yield cluster
