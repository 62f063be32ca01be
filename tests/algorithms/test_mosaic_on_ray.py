"""The whole of Mosaic on Ray: the digests of the inline run, wherever its steps and its distillation run."""

# ruff: noqa: E402 (where Ray is not installed the file is skipped before it imports what needs Ray)

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from actors.distillation.plan import DistilResources
from actors.hosts.placement import Placement
from actors.hosts.ray import RayRunner
from tests.algorithms.test_mosaic import RECIPES, setup
from tests.support import play, tiny_shards


def place(kind: str, hosts: int) -> Placement:
    return Placement(kind, hosts, cpus=0.1, gpus=0, reason="")


def on_ray(recipe: str, placement: Placement, distillation: DistilResources | None = None):
    settings = setup(clients=4, **RECIPES[recipe])
    runner = RayRunner(settings, tiny_shards(4), placement, distillation=distillation)
    try:
        return play(settings, runner, rounds=3)
    finally:
        runner.close()


def inline(recipe: str):
    return play(setup(clients=4, **RECIPES[recipe]), rounds=3)


@pytest.mark.parametrize(
    "placement",
    [place("pooled", 1), place("pooled", 2), place("pooled", 3), place("dedicated", 4)],
    ids=lambda p: f"{p.kind}{p.hosts}",
)
@pytest.mark.parametrize("recipe", ["conditional dcgan", "mixed"])
def test_mosaics_steps_on_ray_give_the_digests_of_the_inline_run(ray_cluster, recipe, placement):
    here, there = inline(recipe), on_ray(recipe, placement)
    assert there.digests == here.digests
    assert there.book.entries == here.book.entries


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dcgan", "mixed", "features"])
def test_with_its_distillation_as_a_ray_job_too_mosaic_has_the_digests_of_the_inline_run(ray_cluster, recipe):
    assert on_ray(recipe, place("pooled", 2), DistilResources()).digests == inline(recipe).digests
