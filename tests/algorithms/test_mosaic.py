"""Mosaic as a whole: its rounds in order, what travels, what stays, and the same bits again."""

import copy
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

import algorithms.methods.mosaic.method as module
from actors.clock import PhaseClock
from actors.cohort.delivery import Book, Delivery
from actors.runner import InlineRunner, StepRequest
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core.distillation import distil_here, labelled_batch
from algorithms.core.kit import Kit
from algorithms.core.needs import LeastRounds
from algorithms.core.payload import Payload
from algorithms.core.records import digest, flatten, rebuild
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.training import Work, fit
from algorithms.methods.mosaic import Mosaic
from algorithms.methods.mosaic.method import MosaicState
from algorithms.nets import Images, build
from algorithms.nets.dcgan import DCGenerator
from algorithms.parts.prototypes import as_examples
from algorithms.parts.submodels import part_of
from tests.algorithms.support_methods import BackwardsRunner, Sizes, Travel, by_class
from tests.support import CLASSES, Played, needs_of, play, tiny_images, tiny_plan, tiny_setup, tiny_shards

SMALL = {
    "warmup": 2,
    "finetune_lr": None,
    "meta_width": 12,
    "meta_heads": 3,
    "meta_feedforward": 16,
    "meta_steps": 10,
    "meta_images": 60,
    "distil_steps": 5,
    "distil_batch": 30,
    "distil_lr": 1e-3,
}
GAN = {"generator": "dcgan", "latent": 6, "gan_width": 4, "gan_steps": 4, "gan_batch": 8, "classifier_steps": 2}
LEAN = {"generator": "pca", "directions": 4}
RECIPES = {
    "dcgan": GAN,
    "conditional dcgan": {**GAN, "conditional": True, "classify": 1.0, "meta_data": "images", "label": "generator"},
    "pca": {**LEAN, "meta_data": "both"},
    "mixed": {**LEAN, "meta_data": "images", "label": "generator", "mixed": True},
    "an expert per client": {**LEAN, "experts": "client"},
    "the global expert": {**LEAN, "experts": "global"},
    "replay": {**LEAN, "experts": "replay"},
    "features": {"generator": "features", "experts": "replay", "cells": 1, "directions": 8},
    "released": {**GAN, "variant": "released"},
}


def travels(size: Sizes) -> Travel:
    """Model and counts in every round; the model once more for prototypes, counts once more with the generator."""
    return {
        ("down", "weights"): (size.rounds + 1) * size.model,
        ("up", "weights"): size.rounds * size.model,
        ("up", "label_counts"): (size.rounds + 1) * 8 * 3,
        ("up", "prototypes"): None,
        ("up", "statistics"): None,
    }


def setup(clients: int = 3, nets: tuple[str, ...] = ("small_cnn",), work: Work | None = None, **config):
    return tiny_setup("mosaic", clients=clients, nets=nets, work=work, **{**SMALL, **LEAN, **config})


def played(rounds: int = 3, clients: int = 3, cohort=None, shards=None, **config) -> Played:
    return play(setup(clients, **config), rounds=rounds, cohort=cohort, shards=shards)


def sent(run: Played, kind: str, direction: str = "up") -> dict[int, list[int]]:
    """Round to the bytes of one kind that each message holds."""
    found: dict[int, list[int]] = {}
    for entry in run.book.entries:
        if entry.kind == kind and entry.direction == direction:
            found.setdefault(entry.round, []).append(entry.bytes)
    return found


def bytes_of(tensors: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_run_twice_has_the_same_digests(recipe):
    first, second = played(**RECIPES[recipe]), played(**RECIPES[recipe])
    assert first.digests == second.digests
    assert len(set(first.digests)) == 3


def walk(settings, runner: InlineRunner, state: MosaicState | None, first: int, last: int) -> MosaicState:
    """Play rounds `first` to `last` - 1 of four with a method of its own."""
    method = Mosaic(settings.config, Kit(settings.task, settings.work, Seed(settings.seed), distil=runner.distil))
    state = state or method.start(settings.clients)
    with one_thread():
        for number in range(first, last):
            plan = tiny_plan(settings, number, 4)
            cohort = Delivery(
                plan, runner, needs_of(settings), Book(), PhaseClock("server"), lambda step, done, asked: None
            )
            state, _ = method.round(state, plan, cohort)
    return state


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("recipe", ["mixed", "released", "features"])
def test_a_run_saved_and_loaded_between_two_rounds_goes_on_with_the_same_bits(recipe, cut):
    settings = setup(**RECIPES[recipe])
    whole = walk(settings, InlineRunner(settings, tiny_shards(3)), None, 0, 4)
    first, second = (InlineRunner(settings, tiny_shards(3)) for _ in range(2))
    tensors, tree = flatten(walk(settings, first, None, 0, cut))
    second.restore(first.memories())
    loaded = rebuild(MosaicState, json.loads(json.dumps(tree)), tensors)
    assert digest(walk(settings, second, loaded, cut, 4)) == digest(whole)


def test_the_warm_up_is_fedavg_to_the_bit():
    mosaic = played(rounds=2, warmup=2).states[0].models["small_cnn"]
    fedavg = play(tiny_setup("fedavg", clients=3, nets=("small_cnn",)), rounds=1).state.model
    assert all(torch.equal(mosaic[name], value) for name, value in fedavg.items())


def test_a_run_needs_as_many_rounds_as_the_warm_up():
    assert needs_of(setup(warmup=7)).least_rounds == LeastRounds(7, "warmup")


def shown(**config) -> dict[str, torch.nn.Module]:
    """The predictors that a run showed, by stage, as copies."""
    settings, stages = setup(**config), {}
    runner = InlineRunner(settings, tiny_shards(3))
    kit = Kit(
        settings.task,
        settings.work,
        Seed(settings.seed),
        show=lambda stage, predictor: stages.update({stage: copy.deepcopy(predictor)}),
    )
    method = Mosaic(settings.config, kit)
    state = method.start(settings.clients)
    for number in range(3):
        plan = tiny_plan(settings, number, 3)
        cohort = Delivery(
            plan, runner, needs_of(settings), Book(), PhaseClock("server"), lambda step, done, asked: None
        )
        state, _ = method.round(state, plan, cohort)
    return stages


def test_the_stages_are_shown_in_their_order_and_are_evaluated_from_images():
    stages = shown()
    assert list(stages) == ["fedavg", "experts", "teacher", "distilled"]
    assert all(stage.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, CLASSES) for stage in stages.values())


@pytest.mark.parametrize("recipe", ["replay", "features"])
def test_without_a_teacher_there_are_two_stages(recipe):
    assert list(shown(**RECIPES[recipe])) == ["fedavg", "distilled"]


def test_feature_gaussians_change_the_head_alone():
    stages = shown(**RECIPES["features"])
    before, after = stages["fedavg"].state_dict(), stages["distilled"].state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}


def test_the_uploaded_bytes_are_models_counts_prototypes_once_and_a_generator_once():
    run = played(rounds=4, warmup=2, **GAN)
    model, generator = bytes_of(run.state.models["small_cnn"]), bytes_of(run.state.generators[0].tensors)
    assert sent(run, "weights") == {number: [model] * 3 for number in range(4)}
    assert sent(run, "generator") == {0: [generator] * 3}
    assert list(sent(run, "prototypes")) == [1]
    features = 4 * 32
    assert all(count % (4 * features) == 0 for count in sent(run, "prototypes")[1])
    counts = sent(run, "label_counts")
    assert counts == {0: [8 * CLASSES] * 6, 1: [8 * CLASSES] * 3, 2: [8 * CLASSES] * 3, 3: [8 * CLASSES] * 3}


def test_what_travels_at_the_papers_scale_has_the_bytes_of_the_paper():
    with torch.random.fork_rng():
        model, generator = snapshot(build("resnet18", Images((3, 32, 32)), 10)), snapshot(DCGenerator((3, 32, 32)))
    assert Payload.of(weights=model).nbytes() == {"weights": 44_734_408}
    assert Payload.of(generator=generator).nbytes() == {"generator": 14_303_008}
    assert Payload.of(prototypes={"3": torch.zeros(1, 512)}).nbytes() == {"prototypes": 2048}


def test_the_released_code_sends_prototypes_in_every_round_of_the_warm_up():
    run = played(rounds=4, warmup=3, prototypes=2, deviations=("stale_prototypes",))
    assert list(sent(run, "prototypes")) == [0, 1, 2]
    first, second = (as_examples(run.states[k].prototypes)[0] for k in (0, 1))
    assert len(second) == 2 * len(first)
    assert run.state.prototypes == {}


def test_of_a_long_warm_up_the_released_code_keeps_prototypes_of_its_last_rounds_alone():
    """Its second run has 41 rounds up to the distillation; of 300 + 41 rounds these are those from number 300 on."""
    run = played(rounds=5, warmup=4, prototypes=2, prototype_rounds=2, deviations=("stale_prototypes",))
    assert list(sent(run, "prototypes")) == [2, 3]
    longer = played(rounds=6, warmup=5, prototypes=2, prototype_rounds=2, deviations=("stale_prototypes",))
    assert len(longer.metrics) == 6
    assert longer.metrics[4]["meta_examples"] == run.metrics[3]["meta_examples"]
    released = Mosaic.Config(variant="released", warmup=341)
    assert [round for round in range(380) if released.takes_prototypes(round)] == list(range(300, 341))
    assert [round for round in range(380) if replace(released, variant="corrected").takes_prototypes(round)] == [340]


def test_the_experts_of_every_round_are_class_wise_averages_of_what_clients_sent():
    run = played(rounds=2)
    assert [len(state.experts) for state in run.states] == [CLASSES, CLASSES]
    assert not torch.equal(run.states[0].experts[0].state["head.bias"], run.states[1].experts[0].state["head.bias"])


def test_experts_can_be_formed_in_the_warm_ups_last_round_alone_with_the_same_result():
    each, last = played(rounds=2), played(rounds=2, experts_when="warm-up")
    assert [len(state.experts) for state in last.states] == [0, CLASSES]
    assert each.digest == last.digest


@pytest.mark.parametrize(("experts", "count"), [("class", CLASSES), ("client", 4), ("global", 1), ("replay", 0)])
def test_there_is_an_expert_for_each_class_or_client_or_one_or_none(experts, count):
    assert len(played(rounds=2, clients=4, experts=experts, meta_data="images").state.experts) == count


def rates(work: Work | None = None, **config) -> list[tuple[str, float, int]]:
    """Phase, learning rate and batch of every local update of the first client."""
    seen, cast = [], setup(3, work=work, **config)

    def watched(net, task, shard, work, seed, **rest):
        if seed.client == 0:
            seen.append((seed.phase, work.at(seed.round).lr, work.batch))
        return fit(net, task, shard, work, seed, **rest)

    play(cast, InlineRunner(cast, tiny_shards(3), watched), rounds=3)
    return seen


def test_fine_tuning_uses_its_own_rate():
    assert rates(finetune_lr=1e-4) == [("train", 0.1, 8), ("train", 0.1, 8), ("fine_tune", 1e-4, 8)]


def test_the_schedule_goes_on_over_fine_tuning():
    halved = Work(steps=3, epochs=None, batch=8, lr=0.5, schedule=RateSchedule("step", every=1, factor=0.5))
    assert rates(halved, finetune_lr=0.1) == [("train", 0.5, 8), ("train", 0.25, 8), ("fine_tune", 0.025, 8)]


def test_fine_tuning_without_a_rate_of_its_own_uses_that_of_the_warm_up():
    assert rates()[-1] == ("fine_tune", 0.1, 8)


def test_in_mixed_rounds_half_of_the_batch_is_real_and_generators_travel_down_once():
    assert rates(**RECIPES["mixed"])[-1] == ("fine_tune", 0.1, 4)
    run = played(rounds=4, **RECIPES["mixed"])
    everything = sum(bytes_of(generator.tensors) for generator in run.state.generators.values())
    assert sent(run, "statistics", "down") == {2: [everything] * 3}
    assert run.state.served == (0, 1, 2)


def test_a_client_that_joins_late_sends_its_generator_then_and_receives_the_others_when_it_fine_tunes():
    cohort = [(0, 1), (1, 2), (0, 3), (2, 3)]
    run = played(rounds=4, clients=4, cohort=cohort.__getitem__, **RECIPES["mixed"])
    asked = {(e.round, e.client) for e in run.book.entries if e.kind == "statistics" and e.direction == "up"}
    served = {(e.round, e.client) for e in run.book.entries if e.kind == "statistics" and e.direction == "down"}
    assert asked == {(0, 0), (0, 1), (1, 2)}
    assert served == {(2, 0), (2, 3), (3, 2)}


def uneven_shards(*sizes: int) -> ShardArrays:
    """Client k holds `sizes[k]` examples, all of class k modulo 3 but for the last client, who holds all classes."""
    pixels, labels = tiny_images()
    rows = [np.flatnonzero(labels == k % CLASSES)[:size] for k, size in enumerate(sizes[:-1])]
    return ShardArrays.of({"image": pixels, "label": labels}, [*rows, np.arange(90, 90 + sizes[-1])])


@pytest.mark.parametrize("recipe", ["dcgan", "conditional dcgan", "pca", "mixed", "features", "an expert per client"])
def test_clients_of_one_class_of_one_batch_and_of_one_example_take_part(recipe):
    run = played(rounds=3, clients=4, shards=uneven_shards(20, 1, 5, 30), **RECIPES[recipe])
    for tensors in (run.state.models["small_cnn"], *(expert.state for expert in run.state.experts)):
        assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert run.state.generators[1].tensors == {}


def test_a_run_in_which_no_client_can_make_a_generator_says_what_to_lower():
    with pytest.raises(ValueError, match="lower least_examples or least_in_cell"):
        played(least_in_cell=100)


def test_a_run_in_which_no_client_sends_a_prototype_says_what_to_lower():
    with pytest.raises(ValueError, match="lower least_in_prototype"):
        played(least_in_prototype=100)


def test_experts_of_an_earlier_round_teach_where_the_last_round_of_the_warm_up_is_empty():
    run = played(cohort=[(0, 1, 2), (), (0, 1, 2)].__getitem__, meta_data="images")
    assert run.states[1].experts == run.states[0].experts
    with pytest.raises(ValueError, match="there are no experts"):
        played(cohort=[(0, 1, 2), ()].__getitem__, rounds=2, meta_data="images", experts_when="warm-up")


def test_a_class_that_nobody_holds_keeps_the_run_going():
    run = played(shards=uneven_shards(20, 20, 0), clients=2)
    assert all(bool(torch.isfinite(v).all()) for expert in run.state.experts for v in expert.state.values())


def test_clients_of_different_networks_are_averaged_apart_and_each_network_is_taught():
    settings = setup(clients=4, nets=("small_cnn", "mlp"), student="mlp", meta_data="images", mixed=True)
    run = play(settings, rounds=3, shards=tiny_shards(4))
    assert sorted(run.state.models) == ["mlp", "small_cnn"]
    assert [expert.net for expert in run.state.experts] == ["mlp"] * CLASSES + ["small_cnn"] * CLASSES
    assert run.method.predictor(run.state)(torch.zeros(2, 1, 8, 8)).shape == (2, CLASSES)


WIDTHS = (1.0, 0.5, 0.25)


def with_widths(settings, widths=WIDTHS):
    clients = (replace(client, width=widths[client.id % len(widths)]) for client in settings.clients)
    return replace(settings, clients=tuple(clients))


@pytest.mark.parametrize("recipe", RECIPES)
def test_clients_of_several_widths_go_through_the_whole_course(recipe):
    extra = {"meta_data": "images"} if recipe == "an expert per client" else {}
    settings = with_widths(setup(**{**RECIPES[recipe], **extra}))
    run = play(settings, rounds=3)
    assert run.digest == play(settings, BackwardsRunner(settings, tiny_shards(3)), rounds=3).digest
    assert all(bool(torch.isfinite(value).all()) for value in run.state.models["small_cnn"].values())
    whole = {name: value.shape for name, value in build("small_cnn", Images((1, 8, 8)), CLASSES).state_dict().items()}
    assert {name: value.shape for name, value in run.state.models["small_cnn"].items()} == whole


def test_drawn_widths_and_several_networks_go_together():
    settings = setup(clients=4, nets=("small_cnn", "mlp"), student="mlp", meta_data="images", mixed=True)
    run = play(replace(settings, widths=WIDTHS), rounds=3, shards=tiny_shards(4))
    assert len({bytes for counts in sent(run, "weights").values() for bytes in counts}) > 2


def test_an_expert_of_narrow_clients_is_made_by_hand():
    """Round 1 of a perceptron with 64 hidden units: client 0 has all; client 1, of width 1/4, units 1 to 16; and
    client 2, of width 1/2, units 1 to 32. Clients hold one class each, so an expert has its own client's units and, for
    the others, the average of those who have them."""
    settings = with_widths(setup(nets=("mlp",), meta_data="images"), (1.0, 0.25, 0.5))
    shards = by_class(3)
    run = play(settings, shards=shards)
    before, after = run.states
    replies = updates(run.method, settings, before, shards)
    hidden = {k: reply.tensors("weights")["body.1.bias"].tolist() for k, reply in replies.items()}
    counts = {k: int(reply.tensors("label_counts")["counts"].sum()) for k, reply in replies.items()}
    units = {0: range(64), 1: range(1, 17), 2: range(1, 33)}
    for label, expert in enumerate(after.experts):
        for unit in range(64):
            having = [k for k in units if unit in units[k]]
            who = [label] if label in having else having
            total = sum(counts[k] * hidden[k][units[k].index(unit)] for k in who)
            expected = total / sum(counts[k] for k in who)
            assert float(expert.state["body.1.bias"][unit]) == pytest.approx(expected, abs=1e-6)


def updates(method, settings, before: MosaicState, shards) -> dict[int, Payload]:
    """The clients' updates of round 1, from a state after round 0."""
    runner = InlineRunner(settings, shards)
    for number, state in ((0, method.start(settings.clients)), (1, before)):
        parts = {c.id: part_of(method.kit, c.net, c.width, number) for c in settings.clients}
        messages = {k: Payload.of(weights=part.extract(state.models["mlp"])) for k, part in parts.items()}
        seed = Seed(settings.seed, round=number, phase="server")
        found = {
            outcome.client: outcome.payload for outcome in runner.run(StepRequest("train", (0, 1, 2), messages, seed))
        }
    return found


def test_the_student_may_be_a_network_that_no_client_has():
    run = play(setup(student="mlp", meta_data="images"), rounds=2)
    assert run.method.predictor(run.state)(torch.zeros(2, 1, 8, 8)).shape == (2, CLASSES)
    start = run.method.start(tiny_setup(clients=3, nets=("small_cnn",)).clients).models["mlp"]
    assert not torch.equal(run.state.models["mlp"]["head.weight"], start["head.weight"])


def jobs(monkeypatch, **config):
    """The distillation job of a run."""
    seen = []

    def watched(runner, job, told=None):
        seen.append(job)
        return distil_here(job)

    monkeypatch.setattr(InlineRunner, "distil", watched)
    played(rounds=2, **config)
    return seen[0]


def test_with_frozen_norm_the_students_running_statistics_do_not_move_and_else_they_do(monkeypatch):
    for deviations, same in ((("frozen_norm",), True), ((), False)):
        job = jobs(monkeypatch, deviations=deviations)
        before, after = job.student.state_dict(), distil_here(job)
        assert [torch.equal(before[n], after[n]) for n in before if "running" in n] == [same] * 6


def test_the_student_comes_to_agree_with_its_teacher(monkeypatch):
    job = jobs(monkeypatch, distil_steps=60)
    batch = labelled_batch(job, 0)

    def gap(state) -> float:
        student = copy.deepcopy(job.student)
        student.load_state_dict(state)
        return float((student.eval()(batch.inputs).softmax(1) - batch.logits.softmax(1)).detach().abs().mean())

    assert gap(distil_here(job)) < 0.5 * gap(job.student.state_dict())


def test_equal_shares_ask_every_generator_for_as_many_images_and_proportional_ones_by_examples(monkeypatch):
    assert jobs(monkeypatch).source.shares == (1.0, 1.0, 1.0)
    assert jobs(monkeypatch, shares="proportional").source.shares == (40.0, 40.0, 40.0)


def test_the_released_variant_is_all_single_deviations_together():
    every = get_args(module.Deviation)
    assert Mosaic.Config(variant="released").released_rules == every
    assert Mosaic.Config(deviations=("frozen_norm",)).released_rules == ("frozen_norm",)
    assert all(name in Mosaic.__doc__ for name in every)


@pytest.mark.parametrize("deviation", get_args(module.Deviation))
def test_every_single_deviation_changes_the_result(deviation):
    plain = {**GAN, "inversion_below": 1000, "prototypes": 12, "shards": uneven_shards(30, 30, 30)}
    assert played(**plain, deviations=(deviation,)).digest != played(**plain).digest


def test_pictures_are_drawn_client_by_client_and_features_have_none():
    run = played(rounds=2)
    sources = run.method.sources(run.state)
    assert list(sources) == [0, 1, 2]
    images, labels = sources[1].inputs(sources[1].latents(0))
    assert images.shape == (16, 1, 8, 8)
    assert set(labels.tolist()) <= {0, 1, 2}
    features = played(rounds=2, **RECIPES["features"])
    assert features.method.sources(features.state) == {}


def test_every_step_draws_nothing_from_the_global_generator_on_the_server():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    played(rounds=3, **RECIPES["conditional dcgan"])
    assert torch.equal(torch.rand(1), expected)
