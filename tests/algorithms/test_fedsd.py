"""FedSD: rewrites, the checks on them, and what is trained on. arXiv 2605.18028; checks after arXiv 2402.13669."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.runner import InlineRunner
from actors.steps.shards import ShardArrays
from algorithms.nets.generation import Answer
from algorithms.parts import rewriting
from tests.algorithms.support_language import EXAMPLES, language_setup, language_shards, prepared
from tests.algorithms.support_methods import Federation
from tests.support import needs_of, play

SMALLEST = {"rewrites_at_once": 5}

UPPER = "IN OTHER WORDS"


def speak(monkeypatch, words=None):
    """Have every model answer with these words, or with what it was asked for the answer of in its own words; the
    prompts that it was asked, in their order."""
    asked = []

    def answers(model, prompts, most, *_):
        asked.extend(map(tuple, prompts))
        texts = [words or f"{UPPER} {model.tokenizer.decode(prompt)[-9:-8]}" for prompt in prompts]
        return [Answer(tuple(model.tokenizer(text)["input_ids"]), True) for text in texts]

    monkeypatch.setattr(rewriting, "generate", answers)
    return asked


# --- Reductions ---


@pytest.mark.parametrize("refused", [{"targets": "raw"}, {}])
def test_with_every_rewrite_rejected_it_is_fedit_to_the_bit(refused):
    """A model of random weights does not end its answers."""
    play_both = [
        play(language_setup(name, **config), rounds=3, shards=language_shards())
        for name, config in (("fedsd", refused), ("fedit", {}))
    ]
    assert play_both[0].state.model.keys() == play_both[1].state.model.keys()
    assert all(torch.equal(play_both[0].state.model[name], value) for name, value in play_both[1].state.model.items())


def test_with_rewrites_accepted_it_is_fedit_on_the_rewrites(monkeypatch):
    speak(monkeypatch, "It is so.")
    task, columns = prepared().task, dict(prepared().train)
    rows, everything = torch.arange(EXAMPLES), language_shards(1)(0)
    tokenizer = task.network(language_setup("fedit").clients[0].net).tokenizer
    new = [*tokenizer("It is so.")["input_ids"], tokenizer.eos_token_id]
    columns |= task.rows_of([(prompt, new) for prompt in task.prompts(everything, rows)])
    other = ShardArrays.of(columns, [np.arange(k, EXAMPLES, 6) for k in range(6)])
    found = play(language_setup("fedsd"), rounds=2, shards=language_shards()).state.model
    expected = play(language_setup("fedit"), rounds=2, shards=other).state.model
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- Rewriting ---


def test_every_answer_is_rewritten_once_in_a_run_whatever_the_rounds(monkeypatch):
    asked = speak(monkeypatch)
    play(language_setup("fedsd", rewrites_at_once=5), rounds=4, shards=language_shards())
    assert len(asked) == EXAMPLES
    assert len(set(asked)) == len({tuple(row) for row in prepared().train["tokens"].tolist()})


def test_clients_that_come_later_rewrite_when_they_come(monkeypatch):
    asked = speak(monkeypatch)
    federation = Federation.inline(language_setup("fedsd"), language_shards(), 3)
    counts = []
    for number, clients in enumerate([(0, 1), (1, 2), (0, 2)]):
        federation.play(number, clients)
        counts.append(len(asked))
    assert counts == [24, 36, 36]
    assert federation.state.rewritten == {0: 0, 1: 0, 2: 1}


def test_answers_are_rewritten_again_where_that_is_asked_for(monkeypatch):
    asked = speak(monkeypatch)
    played = play(language_setup("fedsd", redistill_every=2), rounds=5, shards=language_shards())
    assert len(asked) == 3 * EXAMPLES
    assert set(played.state.rewritten.values()) == {4}


def test_two_runs_of_one_seed_have_the_same_rewrites_greedily_and_by_chance():
    for decoding in ("greedy", "sampled"):
        setup = language_setup("fedsd", rewrite_check="none", decoding=decoding, clients=2)
        tables = []
        for _ in range(2):
            played = play(setup, rounds=1, shards=ShardArrays.of(prepared().train, [np.arange(4), np.arange(4, 8)]))
            tables.append([dict(rows.texts) for rows in played.book.rows])
        assert tables[0] == tables[1]


def test_nothing_but_a_count_travels_for_the_rewriting():
    entries = play(language_setup("fedsd"), rounds=1, shards=language_shards()).book.entries
    assert {(e.direction, e.kind, e.bytes) for e in entries if e.phase == "rewrite"} == {("up", "examples", 8)}


def test_a_row_is_told_of_each_rewrite_with_texts_apart(monkeypatch):
    speak(monkeypatch, "It is so.")
    book = play(language_setup("fedsd", clients=6), rounds=1, shards=language_shards()).book
    assert [rows.client for rows in book.rows] == list(range(6))
    first = book.rows[0]
    assert set(first.rows) == {"item", "accepted", "reason", "tokens", "new_tokens"}
    assert first.rows["item"] == list(range(12))
    assert all(first.rows["accepted"])
    assert set(first.texts) == {"text", "new_text"}
    assert first.texts["text"][0] == "It is 0."


def test_the_longest_rewrite_is_twice_the_answer_and_64_tokens_or_what_the_context_leaves(monkeypatch):
    found = []

    def answers(model, prompts, most, *_):
        found.extend(zip(prompts, most, strict=True))
        return [Answer((), True)] * len(prompts)

    monkeypatch.setattr(rewriting, "generate", answers)
    shards, setup = language_shards(1), language_setup("fedsd", clients=1)
    play(setup, rounds=1, shards=shards)
    answers = setup.task.answer_tokens(shards(0), torch.arange(EXAMPLES))
    for (prompt, most), answer in zip(found, answers, strict=True):
        assert most == min(512, 2 * len(answer) + 64, 48 - len(prompt))


def test_canonical_answers_are_refused_before_the_start_where_the_data_have_none():
    (reason,) = needs_of(language_setup("fedsd", targets="canonical")).refusals
    assert "data.columns.canonical" in reason


# --- Failures ---


def test_a_client_that_failed_while_it_rewrote_is_not_asked_to_train(monkeypatch):
    setup = language_setup("fedsd")
    federation = Federation(setup, _Failing(setup), 2)
    federation.play_all()
    trained = {e.client for e in federation.book.entries if e.phase == "train"}
    assert trained == {0, 1, 2, 4, 5}


class _Failing(InlineRunner):
    """Loses every rewriting of client 3."""

    def __init__(self, setup):
        super().__init__(setup, language_shards())

    def run(self, request):
        if request.step == "rewrite":
            request = dataclasses.replace(request, clients=tuple(c for c in request.clients if c != 3))
        return super().run(request)
