"""The task of following instructions: tokens, masks, figures, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algorithms.core.columns import Column, ColumnError, SettingError
from algorithms.core.scoring import score
from algorithms.core.task import Shard
from algorithms.nets.language_models import load_tokenizer
from algorithms.tasks import instructions
from algorithms.tasks._next_token import NO_TARGET
from algorithms.tasks.instructions import InstructionTask
from tests.algorithms.support_language import EXAMPLES, base, columns, language_shards, prepared, rows


def column(*texts):
    return Column("text", np.array(texts, dtype=object))


def prepare(answer="Yes.", instruction="Say yes", **settings):
    given = {"instruction": column(instruction), "answer": column(answer)}
    return InstructionTask.prepare(given, given, {}, InstructionTask.Settings(**{"net": base(), "rank": 4, **settings}))


@pytest.mark.parametrize("start", ["", " ", "7 "])
def test_what_is_learnt_are_the_tokens_of_the_answer_and_its_end(start):
    """Also where the answer begins with a blank or a digit: both parts are cut into tokens apart."""
    tokenizer = load_tokenizer(base().removeprefix("hf:"))[0]
    for _, answer, *_ in rows()[:50]:
        found = prepare(start + answer)
        _, targets = found.task.batch(Shard(tensors(found.train), torch.arange(1)), torch.arange(1))
        expected = [*tokenizer(start + answer)["input_ids"], tokenizer.eos_token_id]
        assert targets[targets != NO_TARGET].tolist() == expected


def tensors(found):
    return {name: torch.from_numpy(values) for name, values in found.items()}


def test_prompts_are_learnt_too_where_that_is_asked_for():
    found = prepare(learn="everything")
    ids, targets = found.task.batch(Shard(tensors(found.train), torch.arange(1)), torch.arange(1))
    assert targets.tolist() == [[*ids[0, 1:].tolist(), targets[0, -1].item()]]
    assert NO_TARGET not in targets


def test_a_batch_is_as_long_as_its_longest_example_and_what_follows_an_end_counts_nowhere():
    task, shard = prepared().task, language_shards(1)(0)
    lengths = shard.columns["length"]
    short, long = int(lengths.argmin()), int(lengths.argmax())
    ids, targets = task.batch(shard, torch.tensor([short, long]))
    assert ids.shape[1] == lengths.max() - 1
    assert (targets[0, lengths[short] - 1 :] == NO_TARGET).all()


def test_padding_changes_no_loss():
    task, shard = prepared().task, language_shards(1)(0)
    net = task.network(base()).eval()
    with torch.no_grad():
        ids, targets = task.batch(shard, torch.arange(8))
        together = task.losses(net(ids), targets)
        alone = [task.losses(net(i), t) for i, t in (task.batch(shard, torch.tensor([n])) for n in range(8))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_longer_examples_are_cut_off_and_those_without_room_for_an_answer_left_out_and_both_are_told():
    given = {
        "instruction": column("Say " + "red " * 40, "Say red"),
        "answer": column("red", "red " * 40),
    }
    chosen = InstructionTask.Settings(net=base(), rank=4, context=24)
    found = InstructionTask.prepare(given, given, {}, chosen)
    assert found.rows.tolist() == [1]
    assert found.train["length"].tolist() == [24]
    assert [fact for fact in found.facts if "training" in fact] == [
        "1 of 2 training rows are left out: their prompts fill all 24 tokens",
        "1 of 1 training rows are longer than 24 tokens and were cut off",
    ]


def test_a_context_is_at_most_the_models_and_that_is_told():
    found = prepare(context=1_000)
    assert found.task.context == 256
    assert found.facts[0].endswith("reads 256 tokens at once, not 1000")


@pytest.mark.parametrize("answer", ["", "  "])
def test_a_row_without_an_answer_is_refused(answer):
    with pytest.raises(ColumnError, match="training row 0 has no answer"):
        prepare(answer)


@pytest.mark.parametrize(
    ("settings", "setting", "words"),
    [
        ({"net": None}, "net", "needs the one language model"),
        ({"net": "hf:/nowhere"}, "net", "there is no folder /nowhere"),
        ({"template": "chat"}, "template", "has no chat template"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(settings, setting, words):
    with pytest.raises(SettingError, match=words) as caught:
        prepare(**settings)
    assert caught.value.setting == setting


def test_figures_by_kind_of_instruction_are_those_of_its_examples():
    task, shard = prepared().task, language_shards(1)(0)
    net, device = task.network(base()), torch.device("cpu")
    whole = task.by_class(score(net, task, shard, device))["loss"]
    assert task.class_names == ("sum", "word")
    for kind in range(2):
        own = Shard(shard.columns, shard.rows[shard.columns["label"] == kind])
        assert whole[kind] == pytest.approx(task.report(score(net, task, own, device))["loss"], rel=1e-6)


def test_the_share_of_free_answers_that_hold_their_key(monkeypatch):
    """Of 72 examples 36 ask for a word that is their key; every answer is `It is red.`"""
    from algorithms.nets.generation import Answer

    task = prepared(generate=1_000).task
    shard = Shard(tensors(prepared(generate=1_000).train), torch.arange(EXAMPLES))
    tokenizer = load_tokenizer(base().removeprefix("hf:"))[0]
    said = tuple(tokenizer("It is red.")["input_ids"])
    monkeypatch.setattr(instructions, "generate", lambda net, prompts, room: [Answer(said, True)] * len(prompts))
    found = task.report(score(task.network(base()), task, shard, torch.device("cpu")))
    assert found["key match"] == pytest.approx(sum(key == "red" for _, _, key, _ in rows()) / EXAMPLES)


def test_well_known_names_of_columns_are_found():
    names = {"instruction": "instruction", "answer": "response", "key": "key", "domain": "category"}
    given = {names[name]: values for name, values in columns().items()}
    assert InstructionTask.fits(given, {})
    found = InstructionTask.prepare(given, given, {}, InstructionTask.Settings(net=base(), rank=4))
    assert found.task.class_names == ("sum", "word")
