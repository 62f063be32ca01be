"""`tessera pretrain` and the cache of tiny language models: the same bits again, whole folders or none, and figures."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

pytest.importorskip("transformers", reason="the extra `llm` is not installed", exc_type=ImportError)

from algorithms.nets.byte_pairs import byte_pair_tokenizer
from algorithms.nets.language_models import fresh_model, load_base
from engine.commands.cli import cli
from engine.pretraining import RECIPES, PretrainingError, cache, ensure_base, learning, lessons, making, pretrain
from engine.pretraining.acceptance import Acceptance, holds, rewritings
from engine.pretraining.examples import Example, batches, examples_of, tensors
from engine.pretraining.learning import learn, mean_nll
from engine.pretraining.lessons import lessons_of
from engine.pretraining.recipe import Recipe, fingerprint

TINY = Recipe(steps=3, batch=512, pairs=120, check=2)
FIT = Acceptance(0.9, 0.8, 0.99, 1.5, 4.0)


@pytest.fixture
def small(monkeypatch):
    """Recipes of a few steps, a tokenizer of a few texts, and few probes."""
    monkeypatch.setattr(lessons, "TOKENIZER_PAIRS", 100)
    monkeypatch.setattr(lessons, "PROBES", 4)
    monkeypatch.setattr(making, "HELD_OUT", 20)
    recipes = dict.fromkeys(RECIPES, TINY)
    monkeypatch.setattr(making, "RECIPES", recipes)
    monkeypatch.setattr(cache, "RECIPES", recipes)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_pair_tokenizer([text for pair in lessons_of(0, 60).pairs for text in pair], 512, 256)


def record(folder):
    return json.loads((folder / making.RECORD).read_text())


# A model and its folder


def test_one_seed_makes_one_model_and_another_seed_another_with_the_same_tokenizer(small, tmp_path):
    first, again, other = (
        record(pretrain("llama-nano", tmp_path / str(n), seed).folder) for n, seed in enumerate((1, 1, 2))
    )
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]
    assert first["tokenizer_sha256"] == again["tokenizer_sha256"] == other["tokenizer_sha256"]


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
def test_what_is_made_is_a_base_model_as_any_other(name, small, tmp_path):
    made = pretrain(name, tmp_path / "model", 0)
    model, tokenizer = load_base(str(tmp_path / "model"), torch.float32, torch.device("cpu"))
    assert making.weights_hash(model) == record(made.folder)["weights_sha256"]
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 2


def test_the_record_holds_the_curve_the_figures_and_what_it_was_made_by(small, tmp_path):
    made = pretrain("llama-nano", tmp_path / "model", 7)
    found = record(made.folder)
    assert [point["step"] for point in found["curve"]] == [2, 3]
    assert found["acceptance"] == dataclasses.asdict(made.acceptance)
    assert (found["model"], found["seed"], found["recipe"]["steps"], found["parameters"]) == (
        "llama-nano",
        7,
        3,
        125_248,
    )
    assert found["misses"] == made.acceptance.misses() != []


def test_a_failure_leaves_nothing_behind(small, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "examine", fail)
    with pytest.raises(KeyboardInterrupt):
        pretrain("llama-nano", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_refused_before_anything_is_learnt_and_left_as_it_is(small, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PretrainingError, match=f"{tmp_path} already holds something else"):
        pretrain("llama-nano", tmp_path, say=lambda *_: pytest.fail("work began"))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_the_same_model_is_kept_where_it_is_and_another_seed_is_something_else(small, tmp_path):
    made = pretrain("llama-nano", tmp_path / "model", 1)
    again = pretrain("llama-nano", tmp_path / "model", 1, say=lambda *_: pytest.fail("work began"))
    assert not again.is_new
    assert again.acceptance == made.acceptance
    with pytest.raises(PretrainingError, match="something else"):
        pretrain("llama-nano", tmp_path / "model", 2)


def test_an_unknown_model_is_told_with_the_nearest_name(tmp_path):
    with pytest.raises(PretrainingError, match="'llama-nanno': did you mean llama-nano"):
        pretrain("llama-nanno", tmp_path / "model")


def test_everything_that_makes_a_model_is_in_its_fingerprint():
    base = fingerprint("llama-nano", TINY, 0)
    assert base == fingerprint("llama-nano", TINY, 0)
    others = {
        fingerprint("gpt2-nano", TINY, 0),
        fingerprint("llama-nano", dataclasses.replace(TINY, clip=2.0), 0),
        fingerprint("llama-nano", TINY, 1),
    }
    assert len(others | {base}) == 4


# The cache


def test_a_named_base_is_made_once_and_its_folder_told(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    first, later = [], []
    folder = ensure_base("llama-nano", first.append)
    assert folder.parent == tmp_path / "models"
    assert str(folder) in first[0]
    assert any("step 3 of 3" in line for line in first)
    assert ensure_base("llama-nano", later.append) == folder
    assert later == []


def test_a_cache_that_cannot_be_written_is_told_with_the_variable_that_names_another(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "file"))
    with pytest.raises(PretrainingError, match="name a folder for it by TESSERA_CACHE"):
        ensure_base("llama-nano", lambda line: None)


# Lessons as numbers


def test_an_answer_and_its_end_are_learnt_and_its_prompt_is_not(tokenizer):
    (example,) = examples_of(tokenizer, [("<task>2 + 2<answer>", " 4")], 256)
    prompt, answer = (tokenizer(text).input_ids for text in ("<task>2 + 2<answer>", " 4"))
    assert example == Example((1, *prompt, *answer, 2), 1 + len(prompt))
    ids, learnt = tensors([example, Example((1, 9, 2), 1)])
    assert learnt.sum(1).tolist() == [len(answer) + 1, 2]
    assert ids[1].tolist() == [1, 9, 2] + [0] * (len(example.ids) - 3)


def test_what_is_longer_than_the_context_is_left_out(tokenizer):
    pairs = [("<task>a<answer>", "b"), ("<task>a<answer>", "b " * 300)]
    assert len(examples_of(tokenizer, pairs, 256)) == 1


def test_batches_keep_to_their_size_and_a_pass_has_every_example_once():
    lengths = np.random.default_rng(0).integers(3, 40, 300)
    examples = [Example((n, *range(length - 1)), 1) for n, length in enumerate(lengths)]
    found, seen = batches(examples, 200, np.random.default_rng(1)), []
    while len(seen) < 300:
        batch = next(found)
        assert len(batch) * max(len(example.ids) for example in batch) <= 200
        seen += [example.ids[0] for example in batch]
    assert sorted(seen) == list(range(300))
    assert seen != list(range(300))


# Learning


def test_the_rate_rises_over_the_warm_up_and_falls_along_half_a_cosine():
    recipe = Recipe(steps=101, batch=1, pairs=1, rate=1.0, last_rate=0.1, warmup=10)
    assert recipe.rate_at(0) == pytest.approx(0.1)
    assert recipe.rate_at(50) == pytest.approx((1.0 + 0.1) / 2)
    assert recipe.rate_at(100) == pytest.approx(0.1)
    assert recipe.rate_at(9) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 9 / 100)) / 2)


def test_the_loss_is_that_of_transformers_with_prompt_and_padding_left_out(tokenizer):
    model = fresh_model("llama-nano", 0)
    examples = examples_of(tokenizer, lessons_of(1, 6).pairs, 256)
    ids, learnt = tensors(examples)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids.masked_fill(~learnt, -100)).loss
    assert mean_nll(model, examples) == pytest.approx(float(expected), rel=1e-5)
    assert model.training


def test_learning_ends_where_the_held_out_loss_gets_no_better_with_the_best_parameters(tokenizer, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    states = []

    def look(model, examples):
        states.append(making.weights_hash(model))
        return next(losses)

    monkeypatch.setattr(learning, "mean_nll", look)
    model = fresh_model("llama-nano", 0)
    examples = examples_of(tokenizer, lessons_of(0, 20).pairs, 256)
    heard = []
    recipe = Recipe(steps=50, batch=256, pairs=20, check=2, patience=2)
    curve = learn(model, batches(examples, 256, np.random.default_rng(0)), examples, recipe, lambda *s: heard.append(s))
    assert [(point.step, point.validation_loss) for point in curve] == [(2, 3.0), (4, 2.0), (6, 2.5), (8, 2.4)]
    assert making.weights_hash(model) == states[1]
    assert [step for step, _ in heard] == list(range(1, 9))


def test_a_model_learns_what_it_is_shown(tokenizer):
    model = fresh_model("llama-nano", 0)
    examples = examples_of(tokenizer, [("<task>say it<answer>", "the table gives 5 mg.")], 256)
    recipe = Recipe(steps=120, batch=64, pairs=1, warmup=5, check=120)
    learn(model, batches(examples, 64, np.random.default_rng(0)), examples, recipe, lambda *_: None)
    assert mean_nll(model, examples) < 0.1


# How good it is


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"key_copy_rate": 0.79}, "copies 79.0% of the facts"),
        ({"key_copy_rate": 1.0}, "copies every fact"),
        ({"end_rate": 0.94}, "ends 94.0% of its answers"),
        ({"canonical_perplexity": 3.3}, "hardly likelier"),
    ],
)
def test_each_demand_that_is_not_met_is_said(changed, words):
    misses = dataclasses.replace(FIT, **changed).misses()
    assert len(misses) == (words is not None)
    assert all(words in miss for miss in misses)


@pytest.mark.parametrize(
    ("text", "value", "is_there"),
    [
        ("The dose is 35 mg.", "35", True),
        ("The dose is 135 mg.", "35", False),
        ("the Table", "table", True),
        ("tables", "table", False),
        ("it is [7, 19, 78][2]", "[7, 19, 78][2]", True),
    ],
)
def test_a_fact_is_there_as_words_and_numbers_of_its_own(text, value, is_there):
    assert holds(text, value) == is_there


class Echo(nn.Module):
    """Generates the third token of each prompt twice, then the end; sees padding only as its mask says."""

    def __init__(self, ends):
        super().__init__()
        self.ends = ends

    def generate(self, input_ids, attention_mask, **_):
        third = [row[mask.bool()][2] for row, mask in zip(input_ids, attention_mask, strict=True)]
        answers = torch.tensor([[int(token), int(token), 2 if self.ends else 9] for token in third])
        return torch.cat([input_ids, answers], 1)


@pytest.mark.parametrize("ends", [True, False])
def test_rewritings_come_in_the_order_of_the_probes_and_say_whether_they_ended(tokenizer, ends):
    probes = [lessons.Probe("", f"<task>{text}<answer>", (), "", "") for text in ("7 and some more words", "3", "5 or")]
    found = rewritings(Echo(ends), tokenizer, probes)
    assert [text[:2] for text, _ in found] == ["77", "33", "55"]
    assert {has_ended for _, has_ended in found} == {ends}


def test_greedy_answers_in_a_batch_are_those_of_each_prompt_alone(tokenizer):
    model = fresh_model("llama-nano", 3).eval()
    probes = lessons_of(0, 1).probes[:6]
    together = rewritings(model, tokenizer, probes)
    assert together == [answer for probe in probes for answer in rewritings(model, tokenizer, [probe])]


# The command


def test_the_command_says_the_figures_and_warns_of_a_poor_model_without_failing(small, tmp_path):
    done = CliRunner().invoke(cli, ["pretrain", "llama-nano", "--out", str(tmp_path / "model")])
    assert done.exit_code == 0
    assert "facts copied in rewriting" in done.output
    assert "warning: not fit for experiments on rewriting: it copies" in done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_command_gives_figures_for_machines(small, tmp_path):
    done = CliRunner().invoke(
        cli, ["pretrain", "llama-nano", "--out", str(tmp_path / "model"), "--steps", "1", "--json"]
    )
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "model")
    assert record(tmp_path / "model")["recipe"]["steps"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [(["llama-nano", "--steps", "0"], "steps = 0"), (["llama-huge"], "no model is called 'llama-huge'")],
)
def test_the_commands_mistakes_are_one_screen_and_exit_code_2(words, said, tmp_path):
    done = CliRunner().invoke(cli, ["pretrain", *words, "--out", str(tmp_path / "model")])
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_model_of_other_code_is_another_model(monkeypatch, tmp_path):
    from engine.pretraining import recipe

    before = recipe.fingerprint("llama-nano", RECIPES["llama-nano"], 0)
    changed = tmp_path / "byte_pairs.py"
    changed.write_text("# tokens of another kind")
    monkeypatch.setattr(recipe, "_CODE", (changed, *recipe._CODE[1:]))
    assert recipe.fingerprint("llama-nano", RECIPES["llama-nano"], 0) != before
