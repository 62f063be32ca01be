"""What Mosaic refuses, with the reason, before anything starts."""

import dataclasses
import re

import pytest

from tests.algorithms.test_mosaic import GAN, RECIPES, setup
from tests.support import needs_of

HEADLESS = "tests.algorithms.test_nets:without_bias"


def refused(
    clients: int = 3, nets: tuple[str, ...] = ("small_cnn",), widths: tuple[float, ...] = (1.0,), **config
) -> list[str]:
    settings = setup(clients, nets, **{"generator": "dcgan", **config})
    specs = tuple(dataclasses.replace(client, width=widths[client.id % len(widths)]) for client in settings.clients)
    return list(needs_of(dataclasses.replace(settings, clients=specs)).refusals)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_that_work_are_not_refused(recipe):
    assert refused(**RECIPES[recipe]) == []


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "an expert per client"])
def test_clients_of_several_widths_are_not_refused(recipe):
    assert refused(**RECIPES[recipe], widths=(1.0, 0.5, 0.25)) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"meta_data": "images"}, "meta_data: images needs generated images of known class"),
        ({"label": "generator"}, "label: generator needs"),
        ({"experts": "replay"}, "experts: replay needs"),
        ({"mixed": True}, "mixed: true needs"),
        ({"classify": 1.0}, "classify: 1 needs"),
        ({"generator": "features"}, "features makes no images for experts: class"),
        ({"generator": "features", "experts": "replay", "mixed": True}, "features makes no images for mixed"),
        (
            {"generator": "features", "experts": "replay", "nets": (HEADLESS,)},
            f"generator: features needs the last linear layer of a network and its inputs, and {HEADLESS} does not end",
        ),
        ({"generator": "pca", "nets": (HEADLESS,)}, f"{HEADLESS} does not end in one.*or set meta_data: images"),
        ({"generator": "features", "experts": "replay", "student": "mlp"}, "features needs one network everywhere"),
        ({"nets": ("small_cnn", "mlp"), "student": "mlp"}, "prototypes are features of one network"),
        ({"nets": ("small_cnn", "mlp"), "generator": "pca", "meta_data": "images"}, "say by student"),
        ({"experts": "client", "widths": (1.0, 0.5)}, "prototypes are features of whole networks"),
        ({"nets": ("torchvision:resnet18",), "widths": (1.0, 0.5)}, "width 0.5: .* has one width only"),
        ({"nets": ("mlp",)}, "inversion = 10 needs batch normalisation, which mlp lacks; set inversion: 0"),
        ({"student": "resnet7"}, "student: no such network 'resnet7'|student: .*resnet7"),
        ({"noise": 1.0, "generator": "pca"}, "noise = 1 is a multiple of clip"),
        ({"distinct": 6}, "distinct = 6: must be at most distil_steps = 5"),
        ({"meta_width": 10}, "meta_width = 10: must be a multiple of meta_heads = 3"),
        ({"generator": "pca", "deviations": ("tanh_range",)}, "tanh_range is of generator: dcgan"),
        ({"generator": "pca", "meta_data": "images", "deviations": ("ten_centres",)}, "none are sent"),
        ({"generator": "pca", "experts": "replay", "deviations": ("unbalanced",)}, "experts: replay has none"),
        ({"prototypes": 9, "deviations": ("ten_centres",)}, "prototypes = 9: .* fails below 10"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(config, reason):
    (found,) = refused(**config)
    assert re.search(reason, found)


@pytest.mark.parametrize("config", [{"inversion": 0.0}, {"inversion_below": 0}, {"deviations": ("dead_inversion",)}])
def test_a_network_without_batch_normalisation_is_served_where_its_statistics_are_not_needed(config):
    assert refused(nets=("mlp",), **config) == []


def test_a_dcgan_for_images_it_cannot_make_is_refused():
    settings = setup(**GAN)
    task = dataclasses.replace(settings.task, shape=(1, 10, 10))
    (found,) = needs_of(dataclasses.replace(settings, task=task)).refusals
    assert "no DCGAN makes images of 10x10" in found
