"""FedDF: averages of answers, unlabelled images from three places, one student for each architecture."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algorithms.core.distillation import Distillation, Learner, distil_here, labelled_batch
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.methods.fedavg import FedAvg
from algorithms.methods.feddf import FedDF, SoftenedKL, by_accuracy
from algorithms.parts.bank import Bank, Expert
from algorithms.parts.ensembles import equal_weights
from algorithms.parts.losses import kl
from algorithms.parts.unlabelled import GivenInputs, Noise
from tests.algorithms.support_ensembles import members, tiny_inputs, tiny_kit, tiny_net
from tests.algorithms.support_methods import Federation
from tests.support import needs_of, play, tiny_setup, tiny_shards, tiny_task

SMALLEST = {
    "batches": 1,
    "latent": 4,
    "generator_width": 4,
    "generator_steps": 2,
    "synthesis_batch": 12,
    "steps": 2,
    "batch": 12,
}
ON_DIGITS = {"batches": 2, "generator_steps": 10, "synthesis_batch": 64, "steps": 20, "batch": 64, "freeze_norm": True}


def small(nets: tuple[str, ...] = ("small_cnn",), **changes):
    return tiny_setup("feddf", nets=nets, **{**SMALLEST, **changes})


def bank_of(experts: list[Expert]) -> Bank:
    return Bank(experts, tiny_kit())


def teacher_of(experts: list[Expert], average: str = "logits", weights=None, temperature: float = 1.0) -> nn.Module:
    method = FedDF(FedDF.Config(average=average, temperature=temperature), tiny_kit())
    return method.teacher(bank_of(experts), equal_weights(len(experts)) if weights is None else torch.tensor(weights))


# --- The teacher --------------------------------------------------------------------------------------------------


def test_the_teacher_is_the_weighted_mean_of_the_clients_logits():
    experts = members("mlp", "small_cnn")
    first, second = tiny_net("mlp", 0)(tiny_inputs()), tiny_net("small_cnn", 1)(tiny_inputs())
    assert torch.allclose(teacher_of(experts)(tiny_inputs()), (first + second) / 2, atol=1e-5)
    weighted = teacher_of(experts, weights=[0.25, 0.75])(tiny_inputs())
    assert torch.allclose(weighted, 0.25 * first + 0.75 * second, atol=1e-5)


@pytest.mark.parametrize(("average", "softening"), [("probabilities", 1.0), ("losses", 3.0)])
def test_probabilities_are_averaged_as_they_are_and_for_the_mean_of_losses_at_the_temperature(average, softening):
    experts = members("mlp", "small_cnn")
    answers = [tiny_net(name, seed)(tiny_inputs()) for seed, name in enumerate(["mlp", "small_cnn"])]
    expected = sum(F.softmax(answer / softening, 1) for answer in answers) / 2
    given = teacher_of(experts, average, temperature=3.0)(tiny_inputs())
    assert torch.allclose(F.softmax(given / 3.0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_mean_of_separate_losses_has_the_gradient_of_average_losses_at_any_temperature(tau):
    experts, student = members("mlp", "small_cnn"), torch.zeros(12, 3, requires_grad=True)
    answers = [tiny_net(name, seed)(tiny_inputs()) for seed, name in enumerate(["mlp", "small_cnn"])]
    (separate,) = torch.autograd.grad(sum(kl(answer / tau, student / tau) for answer in answers) / 2, student)
    teacher = teacher_of(experts, "losses", temperature=tau)(tiny_inputs())
    (together,) = torch.autograd.grad(SoftenedKL(tau)(student, teacher, torch.zeros(12)), student)
    assert torch.allclose(separate, together, atol=1e-6)


@pytest.mark.parametrize("average", ["logits", "probabilities", "losses"])
def test_the_teacher_does_not_know_the_order_of_the_clients(average):
    experts = members("mlp", "small_cnn", "mlp")
    there, back = (teacher_of(order, average)(tiny_inputs()) for order in (experts, experts[::-1]))
    assert torch.allclose(there, back, atol=1e-5)


@pytest.mark.parametrize("average", ["logits", "probabilities", "losses"])
def test_equal_clients_answer_as_one_of_them_however_they_are_averaged(average):
    (one,) = members("small_cnn")
    alone = F.softmax(tiny_net()(tiny_inputs()), 1)
    assert torch.allclose(F.softmax(teacher_of([one, one, one], average)(tiny_inputs()), 1), alone, atol=1e-5)


def test_a_class_to_which_no_client_gives_any_probability_leaves_the_loss_finite():
    (one,) = members("mlp")
    one.state["head.bias"].copy_(torch.tensor([0.0, 0.0, -1000.0]))
    student = torch.zeros(12, 3, requires_grad=True)
    loss = SoftenedKL(1.0)(student, teacher_of([one], "probabilities")(tiny_inputs()), torch.zeros(12))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_the_loss_has_no_square_of_the_temperature():
    student, teacher = tiny_net("mlp", 0)(tiny_inputs()), tiny_net("mlp", 1)(tiny_inputs())
    loss = SoftenedKL(4.0)(student, teacher, torch.zeros(12))
    assert loss.item() == pytest.approx(kl(teacher / 4, student / 4).item())


def test_clients_count_by_their_accuracy_and_those_that_guess_not_at_all():
    shares = by_accuracy(torch.tensor([0.6, 0.25, 0.2, 0.9]), classes=4)
    assert shares.tolist() == pytest.approx([0.4, 0.0, 0.0, 0.6])
    assert by_accuracy(torch.tensor([0.1, 0.2]), classes=4).tolist() == [0.5, 0.5]


# --- Unlabelled images --------------------------------------------------------------------------------------------


def test_given_images_are_all_shown_in_every_pass_each_time_in_another_order():
    source = GivenInputs(torch.arange(6.0).view(6, 1, 1, 1), batch=2, seed=Seed(0))
    first, second = (
        [value for index in turn for value in source.inputs(source.latents(index))[0].flatten().tolist()]
        for turn in (range(3), range(3, 6))
    )
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4, 5]
    assert first != second
    assert source.latents(4)["pick"].tolist() == source.latents(4)["pick"].tolist()


def test_fewer_images_than_a_batch_are_shown_all_at_once():
    source = GivenInputs(torch.zeros(3, 1, 2, 2), batch=8, seed=Seed(0))
    images, labels = source.inputs(source.latents(5))
    assert len(images) == 3
    assert labels.tolist() == [-1, -1, -1]


def test_noise_fills_the_range_of_pixels_and_is_normalised_like_them():
    source = Noise(tiny_task(), batch=4, seed=Seed(0))
    images, labels = source.inputs(source.latents(1))
    assert images.shape == (4, 1, 8, 8)
    assert images.min().item() == pytest.approx((0 - 0.25) / 0.25, abs=1e-5)
    assert images.max().item() == pytest.approx((1 - 0.25) / 0.25, abs=1e-5)
    assert labels.tolist() == [-1] * 4
    assert torch.equal(source.latents(1)["noise"], source.latents(1)["noise"])


def federation_with_public_images(rounds: int = 1, **changes) -> Federation:
    """A federation whose server owns the images of a seventh client."""
    federation = Federation.inline(small(unlabelled="noise", **changes), tiny_shards(), rounds)
    federation.method.config = FedDF.Config(**{**SMALLEST, "unlabelled": "public", **changes})
    federation.method.kit.public = tiny_shards(7)(6)
    return federation


def test_the_servers_own_images_are_normalised_like_the_clients_data():
    federation = federation_with_public_images()
    source, public = federation.method.source([], Seed(0)), federation.method.kit.public
    assert torch.equal(source.examples, tiny_task().normalise(public.columns["image"][public.rows]))


def test_labels_of_the_servers_own_images_change_nothing_where_clients_count_alike():
    plain, mixed_up = federation_with_public_images(), federation_with_public_images()
    public = mixed_up.method.kit.public
    mixed_up.method.kit.public = dataclasses.replace(
        public, columns={"image": public.columns["image"], "label": public.columns["label"].flip(0)}
    )
    models = [federation.play(0).state.model for federation in (plain, mixed_up)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_clients_are_weighed_by_their_accuracy_on_the_servers_own_examples():
    federation = federation_with_public_images(teachers="accuracy")
    trained = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=4).state.model
    guessing = {name: torch.zeros_like(value) for name, value in trained.items()}
    shares = federation.method.weights([Expert("small_cnn", trained), Expert("small_cnn", guessing)])
    assert shares.tolist() == [1.0, 0.0]


def test_a_server_without_images_is_told_so_before_the_first_round():
    with pytest.raises(ValueError, match="unlabelled: public"):
        play(small(unlabelled="public"), rounds=1)


# --- Rounds -------------------------------------------------------------------------------------------------------


def test_the_clients_step_is_that_of_fedavg_itself():
    assert FedDF.train is FedAvg.train


def test_without_steps_it_is_fedavg_to_the_bit():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=2).state.model
    same = play(small(steps=0), rounds=2).state.model
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


def a_job(experts: list[Expert], student: dict[str, torch.Tensor], images: int = 24, **changes) -> Distillation:
    """The distillation of these clients into a small_cnn of this state, on noise that was given."""
    method = FedDF(FedDF.Config(**{**SMALLEST, **changes}), tiny_kit())
    source = GivenInputs(tiny_inputs(images), method.config.batch, Seed(0))
    return method.job(source, teacher_of(experts), "small_cnn", student, Seed(0))


def test_a_student_that_equals_its_one_teacher_has_no_loss_and_no_gradient():
    (one,) = members("small_cnn")
    job = a_job([one], one.state, freeze_norm=True)
    assert Learner(job, job.student).step(labelled_batch(job, 0)) == pytest.approx(0, abs=1e-6)
    assert max(parameter.grad.abs().max().item() for parameter in job.student.parameters()) < 1e-6


def test_frozen_batch_statistics_stay_those_of_the_clients_average():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state.model
    for frozen in (True, False):
        model = play(small(freeze_norm=frozen), rounds=1).state.model
        statistics = [name for name in model if "running" in name]
        assert all(torch.equal(model[name], plain[name]) for name in statistics) == frozen


def jobs_of(setup, rounds: int = 1) -> list:
    """The distillations of a run's last round."""
    federation, jobs = Federation.inline(setup, tiny_shards(), rounds), []

    def watched(job):
        jobs.append(job)
        return distil_here(job)

    federation.method.kit.distil = watched
    for number in range(rounds):
        jobs.clear()
        federation.play(number)
    return jobs


def test_every_architecture_is_taught_by_the_same_answers_on_the_same_images():
    jobs = jobs_of(small(("mlp", "small_cnn"), student="cnn2"))
    assert len(jobs) == 3
    for index in (0, 1):
        batches = [job.source.inputs(job.source.latents(index))[0] for job in jobs]
        answers = [job.teacher(batch) for job, batch in zip(jobs, batches, strict=True)]
        assert all(torch.equal(batch, batches[0]) for batch in batches)
        assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_students_of_all_architectures_come_back_taught():
    plain = play(small(("mlp", "small_cnn"), student="mlp", steps=0), rounds=1).state
    taught = play(small(("mlp", "small_cnn"), student="mlp"), rounds=1).state
    for net in ("mlp", "small_cnn"):
        assert not torch.equal(plain.models[net]["head.weight"], taught.models[net]["head.weight"])


def test_a_student_starts_from_its_clients_average_or_from_what_it_was():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state.model
    (average,), (previous,) = (jobs_of(small(start=start)) for start in ("average", "previous"))
    initial = tiny_kit().initial("small_cnn")
    assert all(torch.equal(value, plain[name]) for name, value in snapshot(average.student).items())
    assert all(torch.equal(value, initial[name]) for name, value in snapshot(previous.student).items())


def test_the_students_optimiser_is_that_of_the_released_code():
    (job,) = jobs_of(small(lr=0.002, steps=6, distinct=3))
    assert (job.lr, job.cosine, job.clip, job.steps, job.distinct) == (0.002, True, 5.0, 6, 3)


def test_the_clients_networks_stay_as_they_were_sent():
    (job,) = jobs_of(small())
    before = [snapshot_of(expert) for expert in job.teacher.voters._experts]
    distil_here(job)
    for expert, values in zip(job.teacher.voters._experts, before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in expert.state.items())


def snapshot_of(expert: Expert) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in expert.state.items()}


def test_distillation_brings_the_student_nearer_to_the_ensemble_on_images_it_has_not_seen():
    experts, unseen = members("small_cnn", "small_cnn"), tiny_inputs(50, seed=77)
    for expert in experts:
        expert.state["head.weight"].mul_(20)
    job = a_job(experts, snapshot(tiny_net(seed=9)), images=200, steps=60, batch=32, lr=5e-3)
    student = job.student.eval()
    before = kl(job.teacher(unseen), student(unseen)).item()
    student.load_state_dict(distil_here(job))
    assert kl(job.teacher(unseen), student.eval()(unseen)).item() < before / 2


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nets", "changes", "word"),
    [
        (("mlp",), {}, "norm: 0"),
        (("small_cnn",), {"teachers": "accuracy"}, "unlabelled: public"),
        (("small_cnn",), {"distinct": 3}, "distinct = 3"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(nets, changes, word):
    setup = small(nets, **changes)
    assert word in "; ".join(needs_of(setup).refusals)


def test_networks_without_batch_normalisation_are_served_where_images_are_not_generated():
    setup = small(("mlp",), unlabelled="noise")
    assert needs_of(setup).refusals == ()
