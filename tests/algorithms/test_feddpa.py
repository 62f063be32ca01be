"""FedDPA: what is shared is FedIT's, what is local stays, and each prompt decides how both are mixed."""

import dataclasses

import pytest
import torch

from actors.steps.worker import one_thread
from algorithms.core.payload import memory_tensors
from algorithms.core.training import Work
from algorithms.methods.feddpa import Mixture
from tests.algorithms.support_language import language_setup, language_shards, prepared
from tests.algorithms.support_methods import Federation, client_of
from tests.support import needs_of, play

BOTH = pytest.mark.parametrize("variant", ["F", "T"])


def played(rounds=2, clients=3, asked=None, **config):
    federation = Federation.inline(
        language_setup("feddpa", clients=clients, **config), language_shards(clients), rounds
    )
    for number in range(rounds):
        federation.play(number, asked)
    return federation


def local_of(federation, client):
    return memory_tensors("local", federation.runner.memories()[client])


def own_predictor(federation, client):
    message, memory = federation.method.own_message(federation.state), federation.runner.memories().get(client)
    setup = federation.setup
    asked = client_of(setup, language_shards(len(setup.clients)), client, message, memory, step="evaluate_own")
    with one_thread():
        return federation.method.own_predictor(asked)


def inputs_of(client=0, clients=3, count=4):
    return prepared().task.batch(language_shards(clients)(client), torch.arange(count))[0]


def logits(net, ids):
    with one_thread(), torch.no_grad():
        return net(ids)


def adapted(state):
    net = prepared().task.network(language_setup("feddpa").clients[0].net)
    net.load_state_dict(dict(state))
    return net.eval()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- Training ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("local_work", [None, 0])
def test_the_shared_adapter_is_that_of_fedit_to_the_bit(variant, local_work):
    setup = language_setup("feddpa", variant=variant, local_work=local_work)
    ours = play(setup, rounds=3, shards=language_shards()).state.model
    assert equal(ours, play(language_setup("fedit"), rounds=3, shards=language_shards()).state.model)


@BOTH
def test_what_clients_send_is_what_they_send_in_fedit(variant):
    """Names and bytes; of the local adapter, nothing."""
    books = [
        play(language_setup(name, **config), rounds=2, shards=language_shards()).book.entries
        for name, config in (("feddpa", {"variant": variant}), ("fedit", {}))
    ]
    ours, theirs = ([(e.round, e.client, e.kind, e.bytes) for e in book if e.direction == "up"] for book in books)
    assert ours == theirs
    assert needs_of(language_setup("feddpa", variant=variant)).up == needs_of(language_setup("fedit")).up


def test_in_t_the_first_round_trains_the_shared_adapter_alone():
    assert local_of(played(rounds=1), 0) == {}
    assert local_of(played(rounds=2), 0).keys() == played(rounds=1).state.model.keys()


def test_in_t_a_local_adapter_goes_on_from_round_to_round_and_one_of_an_absent_client_stays():
    federation = Federation.inline(language_setup("feddpa", clients=3), language_shards(3), 4).play(0).play(1)
    first = [local_of(federation, client) for client in range(3)]
    federation.play(2, asked=[0, 1])
    assert [equal(local_of(federation, client), first[client]) for client in range(3)] == [False, False, True]
    assert not equal(first[0], first[1])


def test_a_fresh_local_adapter_that_is_not_trained_adds_nothing():
    local = local_of(played(rounds=2, local_work=0), 0)
    assert all((value == 0).all() for name, value in local.items() if name.endswith("lora_B"))
    assert any((value != 0).any() for name, value in local.items() if name.endswith("lora_A"))


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_in_t_a_step_of_the_local_adapter_follows_the_gradient_of_its_formula(weight):
    """h_out = W0 h + a s B_l A_l h + (1 - a) stopgrad(s B_g A_g h), one SGD step on all of a client's examples."""
    work = Work(steps=1, epochs=None, batch=100, lr=0.5)
    setup, shards = language_setup("feddpa", clients=1, work=work, local_weight=weight), language_shards(1)
    federation = Federation.inline(setup, shards, 3).play(0).play(1)
    start, received = local_of(federation, 0), federation.state.model
    found = local_of(federation.play(2), 0)
    net = adapted(start)
    received_net, modules = adapted(received), dict(net.base.named_modules())
    for name in net.matrices():  # a hook of our own, beside that of the local adapter
        modules[name].register_forward_hook(
            lambda _, h, out, name=name: out + (1 - weight) * received_net.change(name, h[0]).detach()
        )
    inputs, targets = setup.task.batch(shards(0), torch.arange(72))
    with one_thread(), net.beside(net.new_branch(), weight=0.0, own=weight):
        setup.task.loss(net(inputs), targets).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], start[name] - 0.5 * parameter.grad, atol=1e-6, rtol=1e-4)
        assert parameter.grad.abs().max() > 0


def test_in_f_local_adapters_begin_as_the_last_shared_one_and_every_client_has_one():
    federation = played(variant="F", asked=[0, 1], local_work=0)
    assert all(equal(local_of(federation, client), federation.state.model) for client in range(3))
    trained = played(variant="F", asked=[0, 1])
    assert not any(equal(local_of(trained, client), trained.state.model) for client in range(3))


def test_in_f_nothing_is_local_before_the_last_round():
    federation = Federation.inline(language_setup("feddpa", variant="F"), language_shards(), 3).play(0).play(1)
    assert all(local_of(federation, client) == {} for client in range(6))


def test_local_training_may_take_another_amount_of_steps_or_epochs():
    one, two = (local_of(played(local_work=amount), 0) for amount in (1, 2))
    assert not equal(one, two)
    assert equal(two, local_of(played(), 0)), "the clients' own two steps"
    work = Work(steps=None, epochs=2, batch=12, lr=0.05)
    assert equal(local_of(played(work=work, local_work=2), 0), local_of(played(work=work), 0))


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_with_weight_0_the_shared_adapter_answers_and_with_weight_1_the_local_one_to_the_bit():
    ids = inputs_of()
    for mix, expected in (("similar", "shared"), ("dissimilar", "local")):
        federation = played(mix=mix, cap=0.0)
        state = federation.state.model if expected == "shared" else local_of(federation, 0)
        assert torch.equal(logits(own_predictor(federation, 0), ids), logits(adapted(state), ids))


@pytest.mark.parametrize("cap", [0.0, 0.3, 1.0])
def test_in_f_without_local_work_every_mixture_answers_alike(cap):
    federation, ids = played(variant="F", local_work=0, cap=cap), inputs_of()
    found = logits(own_predictor(federation, 0), ids)
    torch.testing.assert_close(found, logits(adapted(federation.state.model), ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("mix", "expected"), [("similar", 0.4), ("dissimilar", 0.6)])
def test_a_prompt_that_is_all_that_a_client_has_gets_the_cap(pooling, mix, expected):
    mixture = own_predictor(played(cap=0.4, pooling=pooling, mix=mix), 0)
    prompt = [1, 4, 40, 50, 60, 5]
    mixture.compare_with([prompt] * 3)
    ids = torch.tensor([[*prompt, 9, 9, 2]])
    assert prepared().task.prompt_lengths(ids).tolist() == [6]
    assert mixture.local_weights(ids[:, :6], torch.tensor([6])).item() == pytest.approx(expected, abs=1e-6)


def test_the_weight_is_the_mean_cosine_of_hidden_states_and_never_negative():
    mixture = own_predictor(played(cap=1.0), 0)
    prompts = [[1, 4, 40, 5], [1, 4, 50, 60, 5], [1, 4, 70, 5]]
    mixture.compare_with(prompts[:2])
    hidden = [state_of(mixture, prompt) for prompt in prompts]
    cosines = [torch.cosine_similarity(hidden[2], hidden[k], dim=0).item() for k in range(2)]
    ids, length = torch.tensor([prompts[2]]), torch.tensor([4])
    assert mixture.local_weights(ids, length).item() == pytest.approx(max(sum(cosines) / 2, 0), abs=1e-5)
    mixture.references = -mixture.references
    assert mixture.local_weights(ids, length).item() == pytest.approx(max(-sum(cosines) / 2, 0), abs=1e-5)


def state_of(mixture, prompt):
    """The last hidden state of a prompt's last token, with the local adapter alone."""
    net = adapted(mixture.local.state_dict())
    with one_thread(), torch.no_grad():
        return net.base(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]


def test_answers_have_no_part_in_the_weights_and_every_row_has_its_own():
    mixture, ids = own_predictor(played(cap=1.0), 0), inputs_of()
    lengths = prepared().task.prompt_lengths(ids)
    other = ids.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = 7
    places = (torch.arange(len(ids)), lengths - 1)
    together = logits(mixture, ids)[places]
    torch.testing.assert_close(logits(mixture, other)[places], together)
    for row in range(len(ids)):
        torch.testing.assert_close(logits(mixture, ids[row : row + 1])[0, lengths[row] - 1], together[row])


def test_free_answers_are_of_the_same_mixture():
    """The first token of a greedy answer is the likeliest after the prompt by the mixture's own logits."""
    from algorithms.nets.generation import generate

    work = Work(steps=8, epochs=None, batch=8, lr=1.0)
    federation, task = played(work=work, cap=1.0), prepared().task
    mixture, shard = own_predictor(federation, 0), language_shards(3)(0)
    prompts = task.prompts(shard, shard.rows[:6])
    with one_thread():
        answers = generate(mixture, prompts, [1] * 6)
    for prompt, answer in zip(prompts, answers, strict=True):
        likeliest = logits(mixture, torch.tensor([prompt]))[0, -1].argmax().item()
        assert list(answer.ids) == ([likeliest] if likeliest != mixture.tokenizer.eos_token_id else [])
    setup = dataclasses.replace(federation.setup, task=prepared(generate=4).task)
    sums = setup.task.generation_sums(mixture, shard)
    assert sums["asked"].item() == 4


def test_a_client_without_a_local_adapter_answers_with_the_shared_one():
    federation, ids = played(rounds=3, asked=[0, 1]), inputs_of()
    assert torch.equal(logits(own_predictor(federation, 2), ids), logits(adapted(federation.state.model), ids))
    assert isinstance(own_predictor(federation, 0), Mixture)
    assert not own_predictor(federation, 0).training


def test_a_client_is_compared_with_prompts_of_its_own_as_many_as_are_asked_for():
    assert len(own_predictor(played(samples=3), 0).references) == 3
    assert len(own_predictor(played(samples=99), 0).references) == 24
    assert torch.equal(own_predictor(played(), 0).references, own_predictor(played(), 0).references)


def test_the_server_has_no_predictor_and_says_whom_to_ask():
    federation = played(rounds=1)
    with pytest.raises(NotImplementedError, match="evaluate_own"):
        federation.method.predictor(federation.state)


# --- Where prompts end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["markers", "alpaca"])
def test_the_end_of_a_prompt_is_found_in_the_tokens(template):
    task, shard = prepared(template=template, context=128).task, None
    train = {name: torch.as_tensor(values) for name, values in prepared(template=template, context=128).train.items()}
    from algorithms.core.task import Shard

    shard = Shard(train, torch.arange(len(train["label"])))
    inputs, _ = task.batch(shard, torch.arange(len(shard)))
    assert torch.equal(task.prompt_lengths(inputs), train["prompt"].long())
    assert task.prompt_lengths(torch.full((2, 9), 40)).tolist() == [9, 9]
    assert task.prompt_lengths(torch.full((2, 1), 40)).tolist() == [1, 1]
