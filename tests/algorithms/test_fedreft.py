"""FedReFT: edits of hidden states, at the places meant, kept at home and mixed with those of all others."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from actors.steps.shards import ShardArrays
from algorithms.core.payload import Payload, memory_tensors
from algorithms.core.training import Work
from algorithms.methods.fedreft import (
    MIXTURES,
    FedReFT,
    align_to,
    geometric_median,
    mean_of,
    median_of,
    mixture,
    orthonormal,
)
from algorithms.nets.generation import generate
from algorithms.nets.interventions import Intervention, Places
from tests.algorithms.support_language import base, language_setup, language_shards, prepared
from tests.algorithms.support_methods import Federation, client_of, method_of, train
from tests.support import needs_of, play

SMALLEST = {"rank": 4}


def edits(seed, scale=1.0, rank=2, size=6):
    """Two edits with orthonormal R."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"R": (rank, size), "W": (rank, size), "b": (rank,)}
    state = {
        f"{place}.{part}": scale * torch.randn(shape, generator=generator)
        for place in ("0.first", "0.last")
        for part, shape in shapes.items()
    }
    return orthonormal(state)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, atol=1e-5):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol)


def model_of(setup, state=None):
    """The network with some edits, in eval mode."""
    method = method_of(setup)
    return method._model(base(), state or method.start(setup.clients).model).eval()


def some_edits(setup, seed=0):
    """Edits that change something."""
    generator = torch.Generator().manual_seed(seed)
    start = method_of(setup).start(setup.clients).model
    return {
        n: v + (0 if n.endswith("R") else 0.3 * torch.randn(v.shape, generator=generator)) for n, v in start.items()
    }


def answers(model, setup):
    inputs, _ = setup.task.batch(language_shards(1)(0), torch.arange(5))
    with torch.no_grad():
        return model(inputs)


# Places


def test_places_are_counted_from_the_first_real_token_and_end_with_the_prompt():
    """Prompt 9 9 9 9 9 5 6, closed by 5 6; the answer holds 5 6 once more."""
    places = Places(first=2, last=3, closing=(5, 6))
    ids = torch.tensor([[9, 9, 9, 9, 9, 5, 6, 8, 5, 6, 0, 0]])
    first, last = places.of(ids)
    assert first[0].nonzero().flatten().tolist() == [0, 1]
    assert last[0].nonzero().flatten().tolist() == [4, 5, 6]
    left = F.pad(ids[:, :7], (4, 0))
    first, last = places.of(left, F.pad(torch.ones(1, 7), (4, 0)))
    assert first[0].nonzero().flatten().tolist() == [4, 5]
    assert last[0].nonzero().flatten().tolist() == [8, 9, 10]


def test_a_short_prompt_has_half_its_tokens_in_each_group_and_none_twice():
    first, last = Places(7, 7, (6,)).of(torch.tensor([[1, 2, 3, 4, 6, 8, 8]]))
    assert first[0].nonzero().flatten().tolist() == [0, 1]
    assert last[0].nonzero().flatten().tolist() == [3, 4]


def test_a_text_without_a_prompts_end_is_not_edited():
    for ids in (torch.tensor([[1, 2, 3]]), torch.tensor([[1]])):
        assert not any(places.any() for places in Places(7, 7, (6, 7)).of(ids))


@pytest.mark.parametrize("template", ["markers", "alpaca"])
def test_the_closing_tokens_of_a_layout_end_each_prompt_and_stand_nowhere_before(template):
    task = language_setup("fedit", task={"template": template}).task
    closing = tuple(task.prompt_end)
    assert closing
    setup = language_setup("fedreft", task={"template": template})

    shard = ShardArrays.of(prepared(template=template).train, [np.arange(20)])(0)
    places = Places(1, 1, closing)
    inputs, targets = setup.task.batch(shard, torch.arange(20))
    _, last = places.of(inputs)
    # The last token of a prompt is the first place with a target.
    assert torch.equal(last.long().argmax(1), (targets != -100).long().argmax(1))


# The edit


def test_an_edit_is_its_formula():
    edit = Intervention(6, 2)
    with torch.no_grad():
        edit.W += 1
        edit.b += 2
    h, r = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), edit.R
    expected = h + (h @ edit.W.T + edit.b - h @ r.T) @ r
    torch.testing.assert_close(edit(h), expected, rtol=1e-4, atol=1e-5)


def test_fresh_edits_are_the_identity():
    setup = language_setup("fedreft")
    model = model_of(setup)
    net = method_of(setup).kit.network(base()).eval()
    with net.alone():
        torch.testing.assert_close(answers(model, setup), answers(net, setup), rtol=0, atol=1e-5)
    assert not torch.allclose(answers(model_of(setup, some_edits(setup)), setup), answers(model, setup), atol=1e-3)


def test_a_rotation_of_an_edit_is_the_same_edit():
    setup = language_setup("fedreft")
    state = some_edits(setup)
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    turned = {name: q @ value for name, value in state.items()}
    assert not torch.allclose(turned["0.first.R"], state["0.first.R"], atol=0.1)
    one, other = (model_of(setup, s) for s in (state, turned))
    # Rows of R are made orthonormal in order, which would turn them back but not W.
    torch.testing.assert_close(answers(one, setup), answers(other, setup), rtol=0, atol=1e-4)
    close(align_to(state, turned), state)


def test_written_tokens_are_not_edited_and_padding_on_the_left_changes_nothing():
    """What the model writes with a cache is what it says when it reads prompt and answer at once."""
    setup = language_setup("fedreft")
    model = model_of(setup, some_edits(setup))
    alike = setup.task.prompts(language_shards(1)(0), torch.tensor([0, 1, 50, 51]))
    prompts = [prompt[cut:] for cut, prompt in enumerate(alike)]
    for prompt, answer in zip(prompts, generate(model, prompts, [5] * 4), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(answer.ids)]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(1).tolist() == list(answer.ids)
        assert answer.ids


# What the server makes of it


def test_a_clients_own_edits_do_not_enter_what_it_receives():
    method = method_of(language_setup("fedreft"))
    latest = {k: edits(k) for k in range(4)}
    before = method.all_but(latest, 2)
    assert equal(method.all_but({**latest, 2: edits(99)}, 2), before)
    assert not equal(method.all_but({**latest, 3: edits(99)}, 2), before)


@pytest.mark.parametrize("rule", ["geometric_median", "mean"])
def test_of_others_that_agree_it_is_what_they_say(rule):
    method = method_of(language_setup("fedreft", rule=rule))
    close(method.all_but({0: edits(5), 1: edits(1), 2: edits(1)}, 0), edits(1))


def test_of_two_clients_it_is_the_other_and_of_one_nothing():
    method = method_of(language_setup("fedreft"))
    close(method.all_but({0: edits(0), 1: edits(1)}, 0), edits(1))
    assert method.all_but({0: edits(0)}, 0) == {}
    assert method.all_but({}, 0) == {}


def test_the_mean_of_all_has_ones_own_in_it():
    method = method_of(language_setup("fedreft", rule="fedavg", align=False))
    latest = {k: edits(k) for k in range(3)}
    close(method.all_but(latest, 0), mean_of([edits(k) for k in range(3)]))


def test_one_client_of_five_moves_the_median_little_and_the_mean_without_bound():
    honest = [edits(0, 1 + 0.01 * k) for k in range(4)]
    far = {name: value * 1e6 for name, value in edits(1).items()}
    plain = median_of(honest, 50)
    moved_median, moved_mean = median_of([*honest, far], 50), mean_of([*honest, far])
    assert max(float((moved_median[n] - plain[n]).norm()) for n in plain) < 0.5
    assert max(float((moved_mean[n] - plain[n]).norm()) for n in plain) > 1e5


def test_the_geometric_median_of_points_on_a_line_and_of_a_triangle():
    line = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    assert geometric_median(line, 200).item() == pytest.approx(1, abs=1e-3)
    triangle = torch.tensor([[0, 0], [1, 0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
    assert geometric_median(triangle, 50).tolist() == pytest.approx([0.5, 3**0.5 / 6])
    alike = torch.ones(4, 3, dtype=torch.float64)
    assert geometric_median(alike, 50).tolist() == [1, 1, 1]


def test_a_mixture_has_orthonormal_rows_and_is_ones_own_to_the_bit_at_zero():
    own, other = edits(0), edits(1)
    assert equal(mixture(own, other, 0.0), own)
    close(mixture(own, other, 1.0), other)
    half = mixture(own, other, 0.5)
    torch.testing.assert_close(half["0.first.R"] @ half["0.first.R"].T, torch.eye(2))
    torch.testing.assert_close(half["0.first.W"], (own["0.first.W"] + other["0.first.W"]) / 2)


# Rounds


def own_edits(federation):
    return {k: memory_tensors("own", memory) for k, memory in federation.runner.memories().items()}


def test_without_mixing_every_client_learns_as_if_alone_to_the_bit():
    setup = language_setup("fedreft", clients=3, lambda_fixed=0.0)
    together = own_edits(Federation.inline(setup, language_shards(3), 3).play_all())
    for number in range(3):
        federation = Federation.inline(setup, language_shards(3), 3)
        for turn in range(3):
            federation.play(turn, [number])
        assert equal(own_edits(federation)[number], together[number])


def test_with_mixing_the_others_matter():
    setup = language_setup("fedreft", clients=3, lambda_fixed=0.5)
    together = own_edits(Federation.inline(setup, language_shards(3), 2).play_all())
    alone = Federation.inline(setup, language_shards(3), 2).play(0, [0]).play(1, [0])
    assert not equal(own_edits(alone)[0], together[0])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rows_are_orthonormal_after_each_step(steps):
    setup = language_setup("fedreft", clients=1, work=Work(steps=steps, epochs=None, batch=4, lr=1.0))
    played = play(setup, rounds=1, shards=language_shards(1))
    start = method_of(setup).start(setup.clients).model
    for name, value in played.state.latest[0].items():
        if name.endswith(".W"):
            # Nothing after the last block looks at a prompt's beginning.
            assert torch.equal(value, start[name]) == name.startswith("1.first")
        if name.endswith(".R"):
            torch.testing.assert_close(value @ value.T, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("one_edit", "groups"), [(False, 2), (True, 1)])
def test_bytes_are_those_of_the_formula(one_edit, groups):
    """L g (2 r d + r) numbers, of two blocks with states of 64."""
    setup = language_setup("fedreft", rank=4, one_edit=one_edit)
    played = play(setup, rounds=2, shards=language_shards())
    expected = 4 * 2 * groups * (2 * 4 * 64 + 4)
    assert {e.bytes for e in played.book.entries if e.kind == "adapters" and e.bytes} == {expected}
    assert needs_of(setup).up["adapters"].bytes == expected


def test_an_absent_client_keeps_its_edits_and_one_that_never_trained_has_none():
    setup = language_setup("fedreft", clients=3)
    federation = Federation.inline(setup, language_shards(3), 2).play(0, [0, 1])
    before = own_edits(federation)
    after = own_edits(federation.play(1, [0]))
    assert equal(before[1], after[1])
    assert not equal(before[0], after[0])
    method = federation.method
    fresh = method.own_predictor(client_of(setup, language_shards(3), 2, method.own_message(federation.state)))
    assert equal(dict(fresh.interventions.state_dict()), federation.state.model)


def test_a_client_chooses_the_mixture_that_is_best_on_what_it_held_out():
    """The others' edits are far worse, then far better than the client's own."""
    setup = dataclasses.replace(language_setup("fedreft"), work=Work(steps=8, epochs=None, batch=8, lr=0.5))
    method, shards = method_of(setup), language_shards()
    good = train(method, client_of(setup, shards, 0, Payload({}))).payload.tensors("weights")
    bad = {n: v if n.endswith("R") else v + 5.0 for n, v in good.items()}
    idle = dataclasses.replace(setup, work=Work(steps=0, epochs=None, batch=8, lr=0.5))
    for own, other, share in ((good, bad, 0.0), (bad, good, 1.0)):
        memory = {f"own/{name}": value for name, value in own.items()}
        reply = train(method_of(idle), client_of(idle, shards, 0, Payload.of(weights=other), memory))
        assert reply.metrics["lambda"] == share
        close(align_to(good, reply.payload.tensors("weights")), good, atol=1e-4)


def test_held_out_examples_are_not_trained_on_and_stay_the_same():
    setup, shards = language_setup("fedreft"), language_shards()
    method = method_of(setup)
    held, rest = method._parts(client_of(setup, shards, 0, Payload({})))
    again, _ = method._parts(client_of(setup, shards, 0, Payload({}), round=4))
    assert len(held) == 3  # a quarter of 12
    assert sorted([*held.rows.tolist(), *rest.rows.tolist()]) == shards(0).rows.tolist()
    assert torch.equal(held.rows, again.rows)
    fixed = method_of(language_setup("fedreft", lambda_fixed=0.5))
    assert len(fixed._parts(client_of(setup, shards, 0, Payload({})))[1]) == 12


def test_the_server_has_no_model_and_says_how_to_evaluate():
    setup = language_setup("fedreft")
    method = method_of(setup)
    with pytest.raises(NotImplementedError, match="evaluate_own"):
        method.predictor(method.start(setup.clients))


def test_the_defaults_are_those_of_the_specification():
    config = FedReFT.Config()
    assert (config.first, config.last, config.one_edit, config.layers, config.lambda_fixed) == (7, 7, False, (), None)
    assert (config.rule, config.align, config.rank) == ("geometric_median", True, 8)
    assert MIXTURES == (0, 0.25, 0.5, 0.75, 1)
