"""The plan and the checks before a start: memory, placement, traffic, and everything that cannot run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.hosts.placement import LIBRARY_BYTES, PROCESS_BYTES
from algorithms.core.needs import Needs, Volume
from algorithms.nets import Images, build
from clusters.nodes import Node
from engine.config import resolve
from engine.errors import ConfigError
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.planning.memory import (
    DRIVER_BYTES,
    JOB_BYTES,
    JOB_PROCESSES,
    MLFLOW_BYTES,
    OPTIMISER_BYTES,
    RAY_BYTES,
    activation_bytes,
    column_bytes,
)
from engine.planning.report import plan
from engine.planning.words import lines
from engine.units import size
from tests.engine.test_config import changed

GIB = 2**30
LEAN = {"name": "mosaic", "generator": "pca", "meta_data": "images"}

MACHINE = (Node(cpus=2, gpus=0, memory=16 * GIB),)

PARAMETERS = 64 * 64 + 64 + 64 * 10 + 10
"""Of the network mlp for digits: 8x8 pixels, 64 hidden units, 10 classes."""


def gathered(**sections):
    return Federation.gather(resolve(changed(**sections)))


def refused(federation, free=16 * GIB):
    with pytest.raises(ConfigError) as caught:
        check(federation, free)
    return {problem.place: problem.reason for problem in caught.value.problems}


@pytest.fixture(scope="module")
def inline():
    return plan(gathered(clients={"cohort": 2}), MACHINE, 8 * GIB)


def test_the_plan_says_what_is_learnt_and_by_what_it_is_judged():
    text = "\n".join(lines(plan(gathered(), MACHINE, 8 * GIB)))
    assert "task: image classification, images of 1x8x8, judged by accuracy (higher is better)" in text


def test_the_plan_says_what_the_budget_sets():
    config = resolve(
        changed(method={"name": "fedftg", "server_steps": 3}, clients={"net": "small_cnn"}, budget="laptop")
    )
    text = "\n".join(lines(plan(Federation.gather(config), MACHINE, 8 * GIB)))
    assert "budget: laptop: generator_width = 16, student_lr = 0.001\n" in text
    assert "budget" not in "\n".join(lines(plan(gathered(budget="laptop"), MACHINE, 8 * GIB)))  # FedAvg has none


def test_the_plan_counts_clients_networks_and_work(inline):
    assert (inline.clients, inline.cohort, inline.rounds, inline.runner) == (4, 2, 3, "inline")
    (net,) = inline.nets
    assert (net.name, net.clients, net.parameters, net.bytes) == ("mlp", 4, PARAMETERS, 4 * PARAMETERS)
    # Each of the two clients asked takes 2 steps.
    assert inline.batches == 2 * 2


def test_inline_nothing_is_placed_and_nothing_lies_in_an_object_store(inline):
    assert inline.placement is None
    assert (inline.memory.host, inline.memory.object_store, inline.memory.free) == (0, 0, 8 * GIB)


def test_what_is_sent_is_counted_for_the_clients_asked(inline):
    sent = {(part.direction, part.kind): (part.bytes, part.when) for part in inline.traffic}
    weights = 2 * 4 * PARAMETERS
    assert sent == {
        ("up", "weights"): (weights, "every round"),
        ("up", "examples"): (2 * 8, "every round"),
        ("down", "weights"): (weights, "every round"),
    }


def test_epochs_are_counted_as_batches_of_each_client():
    federation = gathered(clients={"steps": None, "epochs": 3, "batch": 100})
    expected = sum(3 * int(np.ceil(size / 100)) for size in federation.partition.sizes)
    assert plan(federation, MACHINE, 8 * GIB).batches == expected


def test_on_ray_the_plan_says_who_runs_where_and_why():
    federation = gathered(runner={"kind": "ray", "placement": "pooled", "hosts": 2})
    report = plan(federation, MACHINE, 8 * GIB)
    assert (report.placement.kind, report.placement.hosts) == ("pooled", 2)
    # FedAvg never distils, so the hosts share both CPUs.
    assert report.placement.cpus == 1
    assert report.memory.host > PROCESS_BYTES + LIBRARY_BYTES
    assert report.memory.object_store >= federation.shards.nbytes
    text = "\n".join(lines(report))
    assert "placement: pooled: 2 hosts for 4 clients" in text
    assert [line.split()[:3] for line in text.splitlines() if line.startswith("    host ")] == [["host", "2", "1"]]


def test_more_hosts_than_fit_are_refused_with_the_number_that_would():
    federation = gathered(runner={"kind": "ray", "hosts": 500})
    with pytest.raises(ConfigError, match=r"runner\.hosts = 500: .*for \d+"):
        plan(federation, MACHINE, 8 * GIB)


def test_activations_are_the_outputs_of_the_layers_and_their_gradients():
    # The perceptron: 64 pixels flattened, 64 units before and after the rectifier, 10 logits.
    net = build("mlp", Images((1, 8, 8)), 10)
    leaves = [m for m in net.modules() if not list(m.children())]
    assert len(leaves) == 4
    assert activation_bytes(net, Images((1, 8, 8))) == 2 * 4 * (64 + 64 + 64 + 10)


def test_mosaic_plans_its_generators_and_experts():
    report = plan(gathered(method={"name": "mosaic", "warmup": 2, "gan_width": 16, "latent": 100}), MACHINE, 8 * GIB)
    # 8x8 images: 100 to 32x4x4 by 4x4, then to 16x8x8 by 4x4, then to one channel by 1x1; each hidden layer's batch
    # normalisation has weight, bias, mean and variance in 32 bits and a counter in 64.
    floats = 100 * 32 * 16 + 32 * 16 * 16 + 16 + 4 * (32 + 16)
    by_name = {stored.name.split()[0]: stored for stored in report.storage}
    assert (by_name["generators"].count, by_name["generators"].bytes) == (4, 4 * floats + 2 * 8)
    assert by_name["experts"].count == 10
    assert ("up", "generator", 4 * (4 * floats + 2 * 8), "once") in {
        (t.direction, t.kind, t.bytes, t.when) for t in report.traffic
    }


def test_gaussians_are_counted_by_the_examples_that_clients_hold():
    """Every client holds enough of each of its three classes. Clients keep what all of them send, and any host may come
    to map that."""
    lean = {"name": "mosaic", "warmup": 2, "generator": "pca", "cells": 3, "directions": 5, "mixed": True}
    classes = {"kind": "classes", "clients": 4, "classes_per_client": 3}
    tree = {**changed(method=lean, runner={"kind": "ray", "hosts": 2}), "partition": classes}
    federation = Federation.gather(resolve(tree))
    report = plan(federation, MACHINE, 8 * GIB)
    (gaussians,) = (stored for stored in report.storage if "Gaussians" in stored.name)
    # Three of each class, with a mean and five directions of 64 pixels.
    assert (gaussians.count, gaussians.bytes) == (4, 3 * 3 * 6 * 64 * 4)
    (host,) = (part for part in report.parts if part.name == "host")
    mapped = federation.shards.nbytes + 4 * 4 * gaussians.bytes
    assert host.own == 2 * (host.bytes - LIBRARY_BYTES - mapped)


def test_more_generators_than_memory_allows_are_refused_with_the_number_that_fits():
    federation = gathered(method={"name": "mosaic", "warmup": 2, "gan_width": 512, "inversion": 0.0})
    check(federation, 16 * GIB)
    (each,) = {h.bytes for h in federation.needs.storage if h.name == "generators"}
    base = DRIVER_BYTES + MLFLOW_BYTES + federation.shards.nbytes + column_bytes(federation.dataset.test)
    experts = 10 * 4 * 4 * PARAMETERS
    for room, fitting in (3 * each, 3), (3 * each - 1, 2):
        reason = refused(federation, base + experts + room)["partition.clients"]
        assert reason.startswith("4 generators of ")
        assert reason.endswith(f": {fitting} would fit")


def test_what_only_the_data_tells_is_refused_together():
    federation = gathered(clients={"net": ["mlp", "torchvision:vgg11"]})
    found = refused(federation)
    assert "vgg11" in found["clients.net"]
    assert "averages networks, which must be the same everywhere" in found["method.name"]


@pytest.mark.parametrize(
    ("method", "clients", "words"),
    [
        ({"name": "fedgen"}, {"net": "mlp"}, "clients of fedgen: their objective puts generated features beside"),
        ({"name": "heterofl"}, {"net": "mlp", "width": 0.5}, "clients of heterofl: scaler: true changes"),
        ({"name": "fedrs"}, {"net": "mlp"}, None),
        ({"name": "fedgen", "alpha": 0, "beta": 0}, {"net": "mlp"}, None),
    ],
    ids=str,
)
def test_stacking_is_refused_for_methods_whose_clients_train_alone(method, clients, words):
    federation = gathered(method=method, clients={**clients, "stack": True})
    if words is None:
        check(federation, 16 * GIB)
    else:
        assert words in refused(federation)["clients.stack"]


def test_what_the_method_says_is_refused_together_with_what_the_data_tells():
    mosaic = {"name": "mosaic", "warmup": 4, "mixed": True}
    tree = changed(method=mosaic, clients={"net": "mpl"}, privacy={"forbid": ["weights", "wieghts"]})
    found = refused(Federation.gather(resolve(tree)))
    assert found.keys() == {"clients.net", "method.name", "method.warmup", "privacy.forbid"}
    assert found["method.warmup"] == "needs 4 rounds, and there are 3: lower it, or set rounds to 4 or more"
    check(gathered(method={**LEAN, "warmup": 3}), 16 * GIB)


@pytest.mark.parametrize(
    ("forbid", "words"),
    [
        (["wieghts"], "wieghts is no kind of content; did you mean weights? there are weights, gradients"),
        (["logits", "weights"], "fedavg sends examples, weights; allow these"),
    ],
)
def test_kinds_that_must_not_leave_a_client_are_kinds_that_there_are_and_none_that_is_sent(forbid, words):
    assert words in refused(gathered(privacy={"forbid": forbid}))["privacy.forbid"]
    check(gathered(privacy={"forbid": ["logits", "prototypes"]}), 16 * GIB)


def test_every_kind_that_there_is_not_is_named():
    with pytest.raises(ConfigError) as caught:
        check(gathered(privacy={"forbid": ["wieghts", "lojits"]}), 16 * GIB)
    values = [problem.value for problem in caught.value.problems if problem.place == "privacy.forbid"]
    assert values == ["wieghts", "lojits"]


def test_a_kind_of_a_methods_own_can_be_forbidden_and_needs_a_sentence():
    federation = gathered(privacy={"forbid": ["masks"]})
    needs = federation.needs.adding(up={"masks": Volume(8)})
    silent = refused(replace(federation, needs=needs))
    assert "sends masks and does not say what that tells" in silent["method.name"]
    assert silent["privacy.forbid"].startswith("fedavg sends examples, masks, weights")
    told = replace(needs, own_kinds={"masks": "which weights the client changed most"})
    assert refused(replace(federation, needs=told)) == {
        "privacy.forbid": "fedavg sends examples, masks, weights; allow these, or choose another method or settings"
    }
    check(replace(gathered(), needs=told), 16 * GIB)


def test_the_plan_says_of_each_kind_what_the_method_says():
    federation = gathered(clients={"cohort": 2})
    needs = Needs(up={"logits": Volume(1.5), "loss": Volume()}, down={"logits": Volume(10, once=True)})
    report = plan(replace(federation, needs=needs), MACHINE, 8 * GIB)
    assert [(t.direction, t.kind, t.bytes, t.when) for t in report.traffic] == [
        ("up", "logits", 3, "every round"),  # of the two clients asked
        ("up", "loss", None, "as the data has it"),
        ("down", "logits", 40, "once"),  # of all four
    ]


def test_an_unknown_network_is_refused_with_the_nearest():
    assert "did you mean mlp?" in refused(gathered(clients={"net": "mpl"}))["clients.net"]


def test_clients_are_counted_again_where_the_data_says_how_many_there_are(tmp_path):
    path = tmp_path / "part.parquet"
    whole = gathered()
    whole.partition.save(path, whole.dataset.fingerprint)
    by_file = {"kind": "file", "path": str(path)}
    tree = changed(clients={"cohort": 5, "net": {"mlp": 3}})
    found = refused(Federation.gather(resolve({**tree, "partition": by_file})))
    assert "at most the 4 clients of the partition" in found["clients.cohort"]
    assert "must sum to the 4 of the partition" in found["clients.net"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    assert "set runner.device: cpu" in refused(gathered(runner={"kind": "ray", "device": "cuda"}))["runner.device"]


def test_a_configuration_that_fits_passes():
    check(gathered(), 16 * GIB)


def test_plans_can_be_written_as_json():
    report = plan(gathered(runner={"kind": "ray"}), MACHINE, 8 * GIB)
    tree = report.tree()
    assert tree["placement"]["kind"] in ("dedicated", "pooled")
    assert replace(report, rounds=9).tree() == {**tree, "rounds": 9}


MOSAIC = {"name": "mosaic", "warmup": 2, "gan_width": 16, "latent": 100, "distil_batch": 64, "distinct": 4}


def test_a_distillation_is_in_the_plan_beside_the_hosts():
    runner = {"kind": "ray", "hosts": 2, "distillation": {"samplers": 2}}
    federation = gathered(method=MOSAIC, runner=runner)
    report = plan(federation, (Node(cpus=4, gpus=0, memory=16 * GIB),), 8 * GIB)
    found = {part.name: (part.processes, part.cpus, part.gpus) for part in report.parts}
    # Two samplers of a quarter, a teacher of a quarter and a train worker of a half leave 2.75 CPUs to two hosts.
    assert found == {
        "driver": (1, 0, 0),
        "host": (2, 1, 0),
        "sampler": (2, 0.25, 0),
        "teacher": (1, 0.25, 0),
        "train worker": (1, 0.5, 0),
        "Ray Train and Data": (JOB_PROCESSES, 0, 0),
        "Ray itself": (0, 0, 0),
    }
    assert report.facts()["distillation"] == (
        "2 samplers of 0.25 CPU, 1 teacher of 0.25 CPU, 1 train worker of 0.5 CPU, beside the hosts"
    )


def test_a_method_that_never_distils_has_no_workers_for_it():
    report = plan(gathered(runner={"kind": "ray"}), MACHINE, 8 * GIB)
    assert [part.name for part in report.parts] == ["driver", "host", "Ray itself"]
    assert "distillation" not in report.facts()


def test_ray_is_not_counted_where_it_runs_already():
    report = plan(gathered(runner={"kind": "ray", "address": "10.0.0.1:6379"}), MACHINE, 8 * GIB)
    assert [part.name for part in report.parts] == ["driver", "host"]


def test_all_together_counts_what_processes_share_once():
    report = plan(gathered(method=MOSAIC, runner={"kind": "ray", "hosts": 2}), MACHINE, 8 * GIB)
    by_name = {part.name: part for part in report.parts}
    shared = LIBRARY_BYTES + report.memory.object_store
    assert report.memory.together == shared + sum(part.own for part in report.parts)
    assert (by_name["Ray itself"].own, by_name["Ray Train and Data"].own) == (RAY_BYTES, JOB_BYTES)
    # One host has its libraries, and the clients' images that it maps, in common with the other.
    mapped = LIBRARY_BYTES + gathered().shards.nbytes
    assert by_name["host"].own == 2 * (by_name["host"].bytes - mapped)


def test_what_workers_of_a_distillation_hold_follows_from_shapes():
    runner = {"kind": "ray", "hosts": 2}
    report = plan(gathered(method=MOSAIC, runner=runner), MACHINE, 8 * GIB)
    process = PROCESS_BYTES + OPTIMISER_BYTES
    own = {part.name: part.own - process for part in report.parts if part.processes == 1}
    by_name = {stored.name.split()[0]: stored for stored in report.storage}
    batch = 64 * (4 * 64 + 8 + 4 * 10)  # images, labels, logits
    outputs = 4 * (64 + 64 + 64 + 10)
    assert own["sampler"] == 4 * by_name["generators"].bytes + 4 * batch
    assert own["teacher"] == 10 * 4 * PARAMETERS + 2 * batch + 64 * outputs
    # Five states; outputs and their gradients of a batch; the 4 batches that come again, and two on their way.
    assert own["train worker"] == 5 * 4 * PARAMETERS + 64 * 2 * outputs + 6 * batch


def test_narrow_clients_are_counted_at_their_own_width():
    federation = gathered(method={"name": "heterofl"}, clients={"width": [1.0, 0.5]})
    report = plan(federation, MACHINE, 8 * GIB)
    half = 64 * 32 + 32 + 32 * 10 + 10  # 32 of the 64 hidden units
    found = [(net.name, net.width, net.clients, net.parameters) for net in report.nets]
    assert found == [("mlp", 1.0, 2, PARAMETERS), ("mlp", 0.5, 2, half)]
    sent = {(part.direction, part.kind): part.bytes for part in report.traffic}
    assert sent["down", "weights"] == 2 * 4 * PARAMETERS + 2 * 4 * half
    assert "mlp at width 0.5: 2 clients" in "\n".join(lines(report))


def test_networks_that_are_trained_together_are_counted_for_all_of_them():
    """Sixteen at once of the MLP; a convolutional network is trained alone, unless convolutions are asked for."""
    for name, stack, together in (("mlp", True, 16), ("cnn2", True, 1), ("cnn2", "convolutions", 16)):
        alone, stacked = (
            plan(gathered(clients={"net": name, "stack": asked}), MACHINE, 8 * GIB).nets[0] for asked in (False, stack)
        )
        assert stacked.training_bytes == together * alone.training_bytes
        assert stacked.example_bytes == together * alone.example_bytes


def test_adam_remembers_one_more_of_a_network_than_sgd_and_loads_torchs_optimisers():
    """Two moments in place of one."""
    sgd, adam = (plan(gathered(clients={"optimiser": name}), MACHINE, 8 * GIB) for name in ("sgd", "adam"))
    assert adam.nets[0].training_bytes == sgd.nets[0].training_bytes + sgd.nets[0].bytes
    assert adam.parts[0].bytes == sgd.parts[0].bytes + sgd.nets[0].bytes + OPTIMISER_BYTES


def test_widths_that_are_drawn_anew_in_every_round_are_counted_on_average():
    widths = {"from": [1.0, 0.5, 0.25], "drawn": "every round"}
    report = plan(gathered(method={"name": "fedrolex"}, clients={"width": widths}), MACHINE, 8 * GIB)
    assert [(net.width, net.clients) for net in report.nets] == [(1.0, 4 / 3), (0.5, 4 / 3), (0.25, 4 / 3)]


def test_a_distillation_that_would_wait_for_ever_is_refused_with_the_number_that_fits():
    federation = gathered(method=MOSAIC, runner={"kind": "ray", "distillation": {"trainers": 9}})
    with pytest.raises(
        ConfigError, match=r"runner\.distillation = .*: .*1 sampler, 1 teacher, 3 train workers would fit"
    ):
        plan(federation, MACHINE, 8 * GIB)


def test_a_machine_without_memory_for_a_host_beside_the_driver_is_refused():
    federation = gathered(runner={"kind": "ray"})
    small = (Node(cpus=2, gpus=0, memory=GIB),)
    with pytest.raises(ConfigError, match=r"1 host does not fit: memory suffices for 0 \(20\d MiB each"):
        plan(federation, small, GIB)


def test_batches_that_do_not_fit_into_this_process_are_refused_with_the_size_that_fits():
    federation = gathered(clients={"batch": 300})
    outputs = 2 * 4 * (64 + 64 + 64 + 10)  # and their gradients, of one example
    needed = plan(federation, MACHINE, 8 * GIB).memory.driver
    with pytest.raises(ConfigError, match=r"clients\.batch = 300: .* are free: 199 would fit"):
        plan(federation, MACHINE, int(needed - 100.5 * outputs))
    assert plan(gathered(clients={"batch": 199}), MACHINE, int(needed - 100.5 * outputs))


@pytest.mark.parametrize("kind", ["inline", "ray"])
def test_batches_larger_than_any_clients_examples_take_no_more_memory_than_all_of_them(kind):
    runner = {"kind": kind}
    largest = int(gathered().partition.sizes.max())
    whole, larger, absurd = (
        plan(gathered(clients={"batch": batch}, evaluate={"batch": 10 * batch}, runner=runner), MACHINE, 8 * GIB)
        for batch in (largest, largest + 1, 10**6)
    )
    assert whole.memory == larger.memory == absurd.memory
    smaller = plan(gathered(clients={"batch": largest - 1}, runner=runner), MACHINE, 8 * GIB)
    outputs = 2 * 4 * (64 + 64 + 64 + 10)
    assert whole.nets[0].training_bytes - smaller.nets[0].training_bytes == outputs


def test_more_classes_than_memory_can_count_by_class_and_answer_are_refused():
    federation = gathered()
    classes = tuple(map(str, range(40_000)))
    setup = replace(federation.setup, task=replace(federation.setup.task, names=classes))
    reason = refused(replace(federation, setup=setup))["data.source"]
    assert reason.startswith("has 40,000 classes, and to count them by class and answer needs 25.6 GB")
    assert "name the column of classes by data.columns.label" in reason


def test_data_that_the_driver_cannot_hold_are_refused_with_the_number_of_images_that_fit():
    federation = gathered()
    needed = DRIVER_BYTES + MLFLOW_BYTES + federation.shards.nbytes + column_bytes(federation.dataset.test)
    rows = len(federation.shards.columns["image"])
    each = federation.shards.nbytes / rows
    reason = refused(federation, int(needed - 10.5 * each))["data.limit"]
    assert reason.endswith(f": {rows - 11} rows would fit")


def test_the_start_of_a_run_tells_of_memory():
    facts = plan(gathered(runner={"kind": "ray", "hosts": 2}), MACHINE, 8 * GIB).facts()
    assert facts["placement"].startswith("pooled: 2 hosts for 4 clients")
    assert facts["memory"].endswith("8.6 GB are free")
    inline = plan(gathered(), MACHINE, 8 * GIB)
    assert inline.facts() == {
        "task": "image classification, images of 1x8x8, judged by accuracy (higher is better)",
        "memory": f"about {size(inline.memory.driver)} will be used; 8.6 GB are free",
    }
