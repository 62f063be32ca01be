"""DFRD: the teacher by class, what the generator is trained for, its moving average, and the student."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import algorithms.methods.dfrd as module
from actors.steps.shards import ShardArrays
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.training import Work
from algorithms.methods.dfrd import DFRD, ByClass, moving_average, transferability
from algorithms.parts.ensembles import Ensemble
from algorithms.parts.losses import kl, kl_each
from tests.algorithms.support_ensembles import members, tiny_inputs, tiny_kit, tiny_net
from tests.algorithms.support_methods import Federation, Sizes, Travel, as_fedavg
from tests.support import needs_of, play, tiny_columns, tiny_setup, tiny_shards

SMALLEST = {"generator_steps": 2, "student_steps": 2, "batch": 12, "latent": 4, "generator_width": 4}
ON_DIGITS = {"generator_steps": 5, "student_steps": 5, "batch": 32}


def travels(size: Sizes) -> Travel:
    """FedAvg's bytes and three counts of 8 bytes."""
    return {**as_fedavg(size), ("up", "label_counts"): size.rounds * 8 * 3}


def small(**changes):
    return tiny_setup("dfrd", nets=("small_cnn",), **{**SMALLEST, **changes})


def dfrd(**changes) -> DFRD:
    return DFRD(DFRD.Config(**{**SMALLEST, **changes}), tiny_kit())


def teacher_of(*names: str, counts: tuple[list[int], ...] | None = None) -> ByClass:
    counts = counts or tuple([1, 1, 1] for _ in names)
    return ByClass(Ensemble.of(members(*names), tiny_kit()), [torch.tensor(c) for c in counts])


def generator_of(method: DFRD, seed: int = 0):
    torch.manual_seed(seed)
    return method._new_generator()


# --- The teacher --------------------------------------------------------------------------------------------------


def test_clients_answer_each_image_by_their_share_of_its_label():
    first, second = tiny_net("mlp", 0)(tiny_inputs()), tiny_net("small_cnn", 1)(tiny_inputs())
    teacher = teacher_of("mlp", "small_cnn", counts=([3, 0, 1], [1, 5, 1]))
    labels = torch.arange(12) % 3
    expected = torch.stack(
        [
            0.75 * first[b] + 0.25 * second[b]
            if label == 0
            else second[b]
            if label == 1
            else (first[b] + second[b]) / 2
            for b, label in enumerate(labels.tolist())
        ]
    )
    assert torch.allclose(teacher(tiny_inputs(), labels), expected, atol=1e-5)


def test_the_teacher_of_one_client_is_that_client():
    teacher = teacher_of("mlp", counts=([2, 7, 1],))
    assert torch.allclose(teacher(tiny_inputs(), torch.arange(12) % 3), tiny_net("mlp", 0)(tiny_inputs()), atol=1e-6)


# --- The generator ------------------------------------------------------------------------------------------------


def test_an_image_transfers_where_the_teacher_alone_is_right():
    right, wrong = [2.0, 0.0], [0.0, 1.0]
    teacher, student = torch.tensor([right, right, wrong, wrong]), torch.tensor([wrong, right, wrong, right])
    labels = torch.zeros(4, dtype=torch.int64)
    expected = -kl_each(teacher[:1], student[:1]).item() / 4
    assert transferability(teacher, student, labels).item() == pytest.approx(expected)


def test_nothing_transfers_where_the_student_is_right_or_the_teacher_wrong():
    logits = torch.tensor([[2.0, 0.0]])
    assert transferability(logits, logits, torch.tensor([0])).item() == 0
    assert transferability(logits, -logits, torch.tensor([1])).item() == 0


def test_training_the_generator_makes_the_teacher_see_the_label_asked():
    method, student = dfrd(generator_steps=1, batch=24, generator_lr=5e-3, tran=0.0), tiny_net(seed=9)
    teacher, generator = teacher_of("small_cnn", "mlp"), generator_of(method)
    fidelity = [method.train_generator(generator, student, teacher, Seed(0))["fidelity"] for _ in range(30)]
    assert fidelity[-1] < fidelity[0] - 0.05


def test_diversity_lies_between_0_and_its_weight():
    told = play(small(div=3.0), rounds=1).metrics[0]
    assert 0 < told["diversity"] <= 3


def test_terms_without_weight_are_0():
    told = play(small(div=0.0, tran=0.0), rounds=1).metrics[0]
    assert told["diversity"] == 0
    assert told["transferability"] == 0


def test_training_the_generator_leaves_student_and_clients_as_they_were():
    method, student, teacher = dfrd(), tiny_net(seed=9), teacher_of("small_cnn")
    before = [snapshot(student), snapshot(teacher.ensemble._nets)]
    method.train_generator(generator_of(method), student, teacher, Seed(0))
    after = [snapshot(student), snapshot(teacher.ensemble._nets)]
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, after, strict=True) for name in old)


# --- The moving average -------------------------------------------------------------------------------------------


def test_the_moving_average_mixes_weights_and_buffers_and_takes_counters_over():
    old = {"weight": torch.tensor([1.0]), "running_mean": torch.tensor([3.0]), "num_batches_tracked": torch.tensor(2)}
    new = {"weight": torch.tensor([5.0]), "running_mean": torch.tensor([7.0]), "num_batches_tracked": torch.tensor(9)}
    mixed = moving_average(old, new, keep=0.25)
    assert {name: value.tolist() for name, value in mixed.items()} == {
        "weight": [0.25 * 1 + 0.75 * 5],
        "running_mean": [0.25 * 3 + 0.75 * 7],
        "num_batches_tracked": 9,
    }


def test_an_average_that_keeps_nothing_is_the_generator_and_one_that_keeps_all_stays():
    state = play(small(keep=0.0)).state
    assert all(torch.equal(value, state.average[name]) for name, value in state.generator.items())
    played = play(small(keep=1.0))
    start = played.method.start(small().clients).average
    kept = {name: value for name, value in played.state.average.items() if value.is_floating_point()}
    assert all(torch.equal(value, start[name]) for name, value in kept.items())


# --- The student --------------------------------------------------------------------------------------------------


def test_without_replay_the_moving_average_is_not_used():
    states = [play(small(replay=0.0, keep=keep)).state for keep in (0.2, 0.9)]
    assert all(torch.equal(value, states[1].model[name]) for name, value in states[0].model.items())
    replayed = [play(small(replay=0.5, keep=keep)).state.model["head.weight"] for keep in (0.2, 0.9)]
    assert not torch.equal(*replayed)


def test_the_students_loss_is_the_divergence_on_both_generators_images():
    method, teacher, student = (
        dfrd(student_steps=1, student_lr=1e-12, replay=0.25),
        teacher_of("mlp"),
        tiny_net("mlp", 9),
    )
    generators, seed = [generator_of(method, 0), generator_of(method, 1)], Seed(0)
    told = method.train_student(student, generators, teacher, seed)
    (labels,) = method._labels(teacher, 1, seed)
    losses = []
    for number, generator in enumerate(generators):
        images = generator.eval()(generator.merge_noise(method._noise(seed, f"noise {number}", 0), labels))
        losses.append(kl(tiny_net("mlp", 0)(images), student(images)).item())
    assert told["distillation_loss"] == pytest.approx(losses[0] + 0.25 * losses[1], rel=1e-4)


def test_the_student_comes_nearer_to_its_teacher():
    method, student = dfrd(student_steps=40, student_lr=0.1), tiny_net(seed=9)
    teacher, generators = teacher_of("small_cnn"), [generator_of(dfrd()), generator_of(dfrd(), 1)]
    images, labels = tiny_inputs(40), torch.arange(40) % 3
    before = kl(teacher(images, labels), student.eval()(images)).item()
    method.train_student(student, generators, teacher, Seed(0))
    assert kl(teacher(images, labels), student.eval()(images)).item() < before


def test_the_students_batch_statistics_stay_where_they_are_frozen():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state.model
    for frozen in (True, False):
        model = play(small(freeze_norm=frozen), rounds=1).state.model
        assert all(torch.equal(model[name], plain[name]) for name in model if "running" in name) == frozen


# --- Rounds -------------------------------------------------------------------------------------------------------


def test_without_steps_of_the_student_it_is_fedavg_to_the_bit():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=2).state.model
    same = play(small(student_steps=0), rounds=2).state.model
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


def test_clients_count_the_examples_that_this_rounds_training_met(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "shares_by_class", lambda counts: seen.append(counts) or torch.ones(1, 3))
    setup = tiny_setup("dfrd", clients=1, work=Work(steps=2, epochs=None, batch=8, lr=0.1), **SMALLEST)
    shards = ShardArrays.of(tiny_columns(), [range(40)])
    play(setup, shards=shards, rounds=2)
    assert [int(counts[0].sum()) for counts in seen] == [16, 16]
    assert seen[0][0].tolist() != seen[1][0].tolist()


def test_what_a_client_sends_up_is_the_model_its_size_and_eight_bytes_for_each_class():
    entries = play(small(), rounds=1).book.entries
    up = {entry.kind: entry.bytes for entry in entries if entry.direction == "up" and entry.client == 0}
    down = {entry.kind: entry.bytes for entry in entries if entry.direction == "down" and entry.client == 0}
    assert up == {**down, "examples": 8, "label_counts": 8 * 3}


@pytest.mark.parametrize("merge", ["multiply", "add", "concatenate", "none"])
def test_every_merge_of_noise_and_label_plays_a_round(merge):
    assert torch.isfinite(play(small(merge=merge), rounds=1).state.model["head.weight"]).all()


def test_labels_that_nobody_met_are_not_asked():
    labels = torch.cat(list(dfrd()._labels(teacher_of("mlp", "mlp", counts=([4, 0, 1], [3, 0, 1])), 5, Seed(0))))
    assert set(labels.tolist()) == {0, 2}
    assert (labels == 0).sum().item() == pytest.approx(60 * 7 / 9, abs=1)


# --- Clients of different widths ----------------------------------------------------------------------------------


def narrow(*widths: float, **changes):
    """A setup whose client k has the k-th of these widths, in turn."""
    setup = small(**changes)
    clients = tuple(replace(client, width=widths[client.id % len(widths)]) for client in setup.clients)
    return replace(setup, clients=clients)


def test_clients_train_and_send_the_sub_networks_of_their_widths():
    book = play(narrow(1.0, 0.5), rounds=1).book
    sent = {e.client: e.bytes for e in book.entries if e.direction == "up" and e.kind == "weights"}
    kit = tiny_kit()
    sizes = [
        sum(v.numel() * v.element_size() for v in kit.new_network("small_cnn", width).state_dict().values())
        for width in (1.0, 0.5)
    ]
    assert [sent[k] for k in range(6)] == [sizes[k % 2] for k in range(6)]


def test_entries_of_the_model_that_nobody_has_keep_their_value():
    federation = Federation.inline(narrow(0.5, generator_steps=0, student_steps=0), tiny_shards(), 1)
    before = federation.state.model["head.weight"]
    moved_on = (federation.play(0).state.model["head.weight"] != before).any(0)
    # Half of the 32 channels, each of which is four features, and in round 0 the first ones. Some never fire.
    assert moved_on[:64].sum() > 40
    assert not moved_on[64:].any()


def test_windows_move_on_by_one_channel_a_round():
    federation = Federation.inline(narrow(0.5, generator_steps=0, student_steps=0), tiny_shards(), 2)
    before = federation.play(0).state.model["head.weight"]
    moved_on = (federation.play(1).state.model["head.weight"] != before).any(0)
    assert moved_on[4:68].sum() > 40
    assert not moved_on[:4].any()
    assert not moved_on[68:].any()


def test_the_teachers_are_the_sub_networks_that_were_sent(monkeypatch):
    nets = []
    monkeypatch.setattr(module, "Ensemble", lambda given: nets.extend(given) or Ensemble(given))
    play(narrow(1.0, 0.25), rounds=1)
    assert [net.head.in_features for net in nets] == [128, 32] * 3


def test_a_network_that_has_one_width_only_is_refused_in_others():
    setup = narrow(1.0, 0.5)
    clients = tuple(replace(client, net="torchvision:resnet18") for client in setup.clients)
    assert any("0.5" in reason for reason in needs_of(replace(setup, clients=clients)).refusals)
    assert needs_of(setup).refusals == ()
