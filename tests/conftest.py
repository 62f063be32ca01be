"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A Ray cluster of 4 logical CPUs on this machine, started once for all tests that ask for it."""
    session = pytest.importorskip("clusters.session", reason="Ray is not installed", exc_type=ImportError)
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    with session.attach_or_start(None, log=log, cpus=4) as cluster:
        yield cluster
