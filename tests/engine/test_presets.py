"""The presets: each can be read, says what it is for, and stands beside its FedAvg."""

import os
import re

import pytest
import yaml

from actors.steps.orders import find_method, method_names
from engine.commands.listing import headline
from engine.config import load, preset_names, resolve, to_tree
from engine.config.reading import preset_text
from engine.errors import ConfigError
from engine.planning.checking import check
from engine.planning.federation import Federation

SETS = ("digits", "mnist", "cifar10")

KINDS = {
    "fedavg-adult": 10,
    "fedavg-agnews": 10,
    "fedavg-breast-cancer": 5,
    "fedavg-diabetes": 5,
    "fedavg-digits-av": 6,
    "fedavg-har": 23,
    "fedavg-sentences": 3,
    "fedavg-shakespeare": 20,
    "fedsdr-tiny": 5,
    "mosaic-lean-breast-cancer": 5,
}
"""Presets of other tasks than plain images, with their numbers of clients."""


def test_the_presets_are_those_that_the_readme_promises():
    assert preset_names() == sorted(
        [
            *(f"{kind}-{data}" for kind in ("mosaic", "mosaic-lean", "fedavg") for data in SETS),
            "mosaic-cifar10-paper",
            "fedavg-cifar10-paper",
            "mosaic-mixed-digits",
            *KINDS,
        ]
    )


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_configuration(name):
    load(name)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_fits_its_data(name, monkeypatch):
    from tests.algorithms.support_language import base

    # To make a tiny language model takes minutes, and a random one has the same form.
    monkeypatch.setattr("engine.planning.federation.ensure_base", lambda *_: base().removeprefix("hf:"))
    is_file = "parquet:" in preset_text(name)
    if is_file and "TESSERA_DATA" not in os.environ:
        pytest.skip("TESSERA_DATA is not set, where mnist/, cifar10/ and the like lie")
    smaller = ["data.limit=1000", "data.test_limit=100"] if is_file else []
    on_cpu = ["runner.device=cpu", "runner.gpus=0", "runner.distillation.gpus=0"]
    federation = Federation.gather(load(name, [*smaller, *on_cpu]))
    check(federation, free=16 * 2**30)
    assert len(federation.setup.clients) == KINDS.get(name, 10)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_opens_with_what_it_is_for(name):
    first = headline(preset_text(name))
    assert first.startswith(("Mosaic ", "FedAvg ", "FedSDR "))
    assert first.endswith(".")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_names_no_folder_of_any_machine(name):
    assert not re.search(r"""(^|[\s:"'])[/~]""", preset_text(name))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_writes_each_key_on_purpose(name):
    """A key that only repeats the default of `clients`, `runner` or `evaluate` would be noise, except at the top."""
    written = yaml.safe_load(preset_text(name))
    assert "seed" not in written
    assert "mlflow" not in written


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("mosaic") and "mixed" not in n])
def test_a_mosaic_preset_and_its_fedavg_differ_in_the_method_alone(name):
    mosaic, fedavg = (
        to_tree(load(n)) for n in (name, name.replace("mosaic-lean", "fedavg").replace("mosaic", "fedavg"))
    )
    for section in ("data", "partition", "clients", "rounds", "seed", "evaluate"):
        assert mosaic[section] == fedavg[section], section


def test_the_mixed_preset_has_five_unrelated_networks_and_an_expert_for_each_client():
    federation = Federation.gather(load("mosaic-mixed-digits"))
    nets = [client.net for client in federation.setup.clients]
    assert nets == ["mlp", "small_cnn", "cnn2", "resnet8", "resnet18"] * 2
    assert federation.config.method.settings.experts == "client"


OTHERS = [name for name in method_names() if name != "mosaic" and "adapters" not in find_method(name).task_traits]


@pytest.mark.parametrize("name", OTHERS)
def test_the_mixture_is_taken_by_methods_that_teach_and_refused_by_those_that_average(name):
    """Refused before anything starts, and the reason names the networks; no other reason is left for those taken."""
    taught = name in ("dense", "co_boosting", "feddf")
    taken = taught or name == "pfedlora"
    settings = {"name": name, **({"student": "small_cnn"} if taught or name == "fedgen" else {})}
    config = resolve({**to_tree(load("mosaic-mixed-digits")), "method": settings})
    federation = Federation.gather(config)
    if taken:
        check(federation, free=16 * 2**30)
        return
    with pytest.raises(ConfigError) as caught:
        check(federation, free=16 * 2**30)
    assert "resnet18" in caught.value.problems[0].reason


@pytest.mark.parametrize("data", SETS)
def test_the_lean_preset_takes_lean_generators_and_mixed_batches(data):
    settings = load(f"mosaic-lean-{data}").method.settings
    assert (settings.generator, settings.mixed) == ("pca", True)


def test_the_paper_preset_holds_the_numbers_of_the_paper():
    config = load("mosaic-cifar10-paper")
    settings, clients = config.method.settings, config.clients
    assert (clients.net, clients.steps, clients.batch, clients.lr, clients.weight_decay) == (
        "resnet18",
        10,
        64,
        0.01,
        1e-4,
    )
    # 300 rounds of a first run, then 80 of which round 40 (from 0) ends with the distillation.
    assert (config.rounds, settings.warmup) == (300 + 80, 300 + 41)
    assert (config.partition.clients, config.partition.alpha, config.partition.kind) == (10, 0.01, "dirichlet_balanced")
    assert (settings.gan_epochs, settings.gan_batch, settings.gan_lr, settings.gan_width) == (200, 64, 2e-4, 64)
    assert (settings.classifier_epochs, settings.diversity, settings.conditional) == (50, 5.0, False)
    assert (settings.meta_steps, settings.prototypes) == (5 * 30, 10)
    assert (settings.distil_steps, settings.distil_batch, settings.distil_lr) == (1500, 32 * 10, 1e-4)
    assert (settings.alpha, settings.beta, settings.temperature, settings.finetune_lr) == (0.8, 1.0, 1.0, 1e-4)
