"""What a client sends must be finite, and of the form that it was given."""

import dataclasses

import pytest
import torch

from actors.steps.orders import Failure, Order, StepError
from actors.steps.vetting import BadUpdate, faults, refuse_faults
from actors.steps.worker import Worker
from algorithms.core.payload import EMPTY, Payload
from algorithms.core.seeds import Seed
from tests.support import play, tiny_setup, tiny_shards

NAN, INF = float("nan"), float("inf")


def weights(*values, **others):
    return Payload.of(weights={"w": torch.tensor(values), **others})


def test_finite_numbers_of_the_form_received_have_no_fault():
    sent = weights(1.0, -2.0, counter=torch.tensor(3))
    assert list(faults(sent, weights(0.0, 0.0, counter=torch.tensor(2)))) == []
    assert list(faults(sent, EMPTY)) == []
    assert list(faults(EMPTY, sent)) == []


@pytest.mark.parametrize(("values", "count"), [((NAN, 1.0), 1), ((INF, 1.0), 1), ((INF, -INF), 2), ((NAN, INF), 2)])
def test_what_is_not_finite_is_counted_under_its_name(values, count):
    assert list(faults(weights(*values), EMPTY)) == [f"weights.w holds NaN or infinity in {count} of 2 entries"]


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_plain_number_must_be_finite_too(number):
    assert list(faults(Payload.of(loss={"mean": number}), EMPTY)) == [f"loss.mean is {number}"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_whose_sum_overflows_are_finite(dtype):
    large = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
    assert not torch.isfinite(large.sum())
    assert list(faults(Payload.of(weights={"w": large}), EMPTY)) == []


def test_whole_numbers_and_empty_tensors_are_finite():
    assert list(faults(weights(2**62, 2**62, none=torch.empty(0, 3)), EMPTY)) == []


def test_a_tensor_comes_back_in_the_shape_and_type_in_which_it_went():
    received = weights(0.0, 0.0)
    (shape,) = faults(weights(1.0, 2.0, 3.0), received)
    assert shape == "weights.w is float32 of shape (3,), but float32 of shape (2,) was received"
    (dtype,) = faults(Payload.of(weights={"w": torch.zeros(2, dtype=torch.float64)}), received)
    assert dtype == "weights.w is float64 of shape (2,), but float32 of shape (2,) was received"
    (number,) = faults(Payload.of(weights={"w": 1.0}), received)
    assert number == "weights.w is a number, but a tensor was received"


def test_a_kind_comes_back_with_the_names_with_which_it_went():
    received = weights(0.0, b=torch.zeros(2))
    (missing,) = faults(weights(1.0), received)
    assert missing == "weights.b was received, but does not come back"
    (added,) = faults(weights(1.0, b=torch.ones(2), c=torch.zeros(())), received)
    assert added == "weights.c comes back, but was not received"
    assert list(faults(Payload.of(weights={}), received)) == [
        "weights.w was received, but does not come back",
        "weights.b was received, but does not come back",
    ]


def test_a_change_under_a_kind_that_was_not_received_may_come_in_the_place_of_a_tensor():
    """As FedNova's, which sends batch normalisation's statistics as they are and of all else the way it went."""
    sent = Payload.of(weights={"b": torch.ones(2)}, gradients={"w": torch.ones(1)})
    assert list(faults(sent, weights(0.0, b=torch.zeros(2)))) == []


def test_a_tensor_of_another_received_kind_stands_for_itself_alone():
    """As SCAFFOLD's controls, which have the weights' names."""
    received = Payload.of(weights={"w": torch.zeros(1), "b": torch.zeros(2)}, control={"w": torch.zeros(1)})
    (missing,) = faults(Payload.of(weights={"b": torch.zeros(2)}, control={"w": torch.zeros(1)}), received)
    assert missing == "weights.w was received, but does not come back"


def test_kinds_that_were_not_received_or_do_not_come_back_may_have_any_names_and_forms():
    received = Payload.of(weights={"w": torch.zeros(2)}, examples={"mean": 2.5})
    assert list(faults(Payload.of(logits={"w": torch.zeros(3)}, examples={"n": 3}), received)) == []


@pytest.mark.parametrize(
    ("tensor", "form"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64 of shape (2,)"),
        (torch.eye(2).to_sparse(), "sparse_coo float32 of shape (2, 2)"),
        (torch.zeros(2, device="meta"), "float32 of shape (2,) without values"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8 of shape (2,)"),
    ],
)
def test_only_dense_tensors_of_real_numbers_travel(tensor, form):
    (fault,) = faults(Payload.of(generator={"g": tensor}), EMPTY)
    assert fault == f"generator.g is {form}, and only dense tensors of real numbers travel"


def test_a_plain_number_fits_into_64_bits():
    assert list(faults(Payload.of(examples={"n": 2**63 - 1, "m": -(2**63)}), EMPTY)) == []
    assert list(faults(Payload.of(examples={"n": 2**63}), EMPTY)) == ["examples.n is a number beyond 64 bits"]


def test_names_are_text():
    (fault,) = faults(Payload({"examples": {7: 1}}), EMPTY)
    assert fault == "examples has the name 7, which is a int and no text"


def test_many_faults_are_five_and_a_number():
    sent = Payload.of(weights={f"w{number}": torch.tensor(NAN) for number in range(9)})
    with pytest.raises(BadUpdate) as caught:
        refuse_faults(sent, EMPTY)
    assert "weights.w4 holds" in str(caught.value)
    assert "weights.w5" not in str(caught.value)
    assert str(caught.value).endswith(
        "; and 4 more; training that diverges ends so: a lower clients.lr, or clients.clip, may help"
    )


# --- In a run -------------------------------------------------------------------------------------------------------


def diverging():
    """A learning rate that takes the weights beyond 32 bits within three steps."""
    setup = tiny_setup("fedavg", clients=2)
    return dataclasses.replace(setup, work=dataclasses.replace(setup.work, lr=1e30))


def test_a_client_that_diverges_stops_the_run_by_name():
    with pytest.raises(StepError) as caught:
        play(diverging(), cohort=lambda number: [1])
    text = str(caught.value)
    assert "method fedavg, step train, client 1, round 0" in text
    assert "weights.head.weight holds NaN or infinity" in text


def test_a_bad_update_leaves_no_memory_and_can_be_performed_again():
    received = Payload.of(weights=play(tiny_setup("fedavg", clients=2), rounds=1).state.model)
    order = Order("train", 1, Seed(3, round=0, phase="train", client=1), received, {})
    worker = Worker(diverging(), tiny_shards(2))
    failure = worker.perform(order)
    assert isinstance(failure, Failure)
    assert failure.error.startswith("BadUpdate: ")
    assert failure.order is order
    with pytest.raises(BadUpdate):
        worker.reply(order)


@pytest.mark.parametrize("value", [torch.tensor([NAN]), torch.tensor([INF]), NAN, -INF])
def test_numbers_that_are_not_finite_are_told_with_what_may_help(value):
    with pytest.raises(BadUpdate, match=r"a lower clients\.lr, or clients\.clip, may help"):
        refuse_faults(Payload({"weights": {"w": value}}), EMPTY)


def test_what_has_another_fault_is_told_without_it():
    with pytest.raises(BadUpdate) as caught:
        refuse_faults(Payload({"weights": {"w": torch.zeros(2)}}), Payload({"weights": {"w": torch.zeros(3)}}))
    assert "clients.lr" not in str(caught.value)
