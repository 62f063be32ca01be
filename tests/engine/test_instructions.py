"""`generated:instructions`: facts that are disjoint by part, two shifts that do not touch each other, styles that keep
every fact; and the texts of pre-training."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.core.keys import SEPARATOR, has_key, has_value, same_numbers, share_of_key
from algorithms.core.prompts import rewriting_prompt, stepwise_prompt, task_prompt
from algorithms.core.seeds import Seed
from engine.data import DataConfig, DataError, load
from engine.data.instructions import facts, finance
from engine.data.instructions.corpus import acceptance_rows, pretraining_texts
from engine.data.instructions.facts import Dice, Facts, Item, part_of
from engine.data.instructions.settings import Settings
from engine.data.instructions.source import DOMAINS, draw_rows, read, writers_styles
from engine.data.instructions.styles import CANONICAL, FOREIGN, SHORT, Style
from engine.data.task import TaskChoice, find_task

SOURCE = "generated:instructions"

STYLES = (CANONICAL, *FOREIGN)

LANGUAGE = TaskChoice("language", find_task("language").Settings())
"""Needs no language model, as the task of instructions does."""


def columns(half="train", **keys):
    """The columns of one half, as lists."""
    found = read(DataConfig(source=SOURCE, **keys), half, None)
    return {name: column.values.tolist() for name, column in found.columns.items()}


def items_of(domain, count, seed=0):
    source = Facts("train", Dice(Seed(seed).numpy("items")))
    return [DOMAINS[domain](source) for _ in range(count)]


# --- Facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [0, 1])
def test_no_fact_of_training_is_tested_nor_in_a_model_before_it_whatever_the_seeds(other):
    train, test = set(columns(items=40)["fact"]), set(columns("test", items=40, seed=other)["fact"])
    before = {row.fact for row in acceptance_rows(other, 100)}
    assert not train & test
    assert not (train | test) & before
    assert {part_of(tuple(fact.split("/"))) for fact in train} == {"train"}
    assert {part_of(tuple(fact.split("/"))) for fact in test} == {"test"}


def test_no_fact_is_asked_for_twice_so_that_held_out_rows_are_disjoint_from_the_others_too():
    found = columns(content_shift=0.5)["fact"]
    assert len(found) == len(set(found)) == 10 * 200


def test_no_row_of_a_table_says_what_another_task_asks_for():
    found = columns(items=100)
    shown = [
        fact
        for instruction in found["instruction"]
        for fact in re.findall(r"(\w+) (\d+) mg (\w+) daily", instruction.partition("?")[0])
    ]
    assert len(shown) == len(set(shown)) == 3 * found["domain"].count("medicine")


def test_no_fact_of_the_data_stands_in_a_prompt_of_pretraining():
    """Of medicine, every row of every table counts."""
    prompts = " ".join(prompt for prompt, _ in pretraining_texts(0, 600).pairs)
    shown = {("medicine", *values) for values in re.findall(r"(\w+) (\d+) mg (\w+) daily", prompts)}
    headlines = re.findall(r"neutral\? (\w+) (\w+) (\w+|stayed at) (\d+) percent", prompts)
    shown |= {("finance", *values) for values in headlines}
    assert len(shown) > 200
    assert {part_of(fact) for fact in shown} == {"pretraining"}


def test_more_facts_than_there_are_is_an_error_that_names_the_domain(monkeypatch):
    monkeypatch.setattr(facts, "TRIES", 3)
    with pytest.raises(DataError, match=r"data.items = 30: 4 writers ask for more facts of finance than the test half"):
        columns("test", writers=4, items=30)


@pytest.mark.parametrize(
    ("thing", "verb", "label"),
    [
        ("sales", "rose", "positive"),
        ("debt", "rose", "negative"),
        ("costs", "fell", "positive"),
        ("orders", "sank", "negative"),
        ("debt", "stayed at", "neutral"),
    ],
)
def test_more_of_what_is_welcome_is_good_news(thing, verb, label):
    assert finance.label_of(thing, verb) == label


def test_values_of_calculations_are_right_and_have_two_digits_at_most():
    for item in items_of("arithmetic", 200):
        *_, value = re.findall(r"\d+", CANONICAL.render(item))
        assert eval(item.instruction.removeprefix("Compute ").removesuffix(".")) == int(value)
        assert all(0 <= int(number) <= 99 for number in item.key)


def test_values_of_expressions_are_right():
    for item in items_of("code", 200):
        expression, value = item.key
        function = re.fullmatch(r"f\((\d+)\) for f\(x\) = x \+ (\d+)", expression)
        assert value == str(sum(map(int, function.groups())) if function else eval(expression))


SIZES = {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3, "g": 1.0, "kg": 1e3, "euro": 1.0, "cent": 0.01}


def test_values_that_are_looked_up_or_converted_are_right():
    for item in items_of("general", 200):
        if item.instruction.startswith("Table"):
            person, _, value = item.key
            assert f" {person} {value}" in item.instruction
        else:
            number, factor, value = map(int, item.key)
            small, large = (words.split()[-1].rstrip(".") for words in reversed(item.instruction.split(" to ")))
            assert number * factor == value == round(number * SIZES[large] / SIZES[small])


# --- Keys and styles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 10_000), style=st.sampled_from(STYLES))
@settings(max_examples=40, deadline=None)
def test_every_style_keeps_every_value_of_the_key_and_adds_no_number(domain, seed, style):
    (item,) = items_of(domain, 1, seed)
    answer = style.render(item)
    assert all(has_value(answer, value) for value in item.key)
    assert same_numbers(CANONICAL.render(item), answer)
    assert not any("|" in value for value in item.key)
    assert answer.isascii()
    assert item.instruction.isascii()
    assert 5 <= len(re.findall(r"\w+|[^\w\s]", answer)) <= 60


def test_a_number_that_is_taken_out_of_the_canonical_answer_is_missed():
    (item,) = items_of("medicine", 1)
    answer, dose = CANONICAL.render(item), item.key[1]
    key = SEPARATOR.join(item.key)
    assert share_of_key(answer, key) == 1.0
    assert share_of_key(answer.replace(dose, ""), key) == 2 / 3


SUM = Item(
    "Compute 2 + 3.",
    ("2", "3", "5"),
    ("arithmetic", "2", "+", "3"),
    ("2 + 3 = 5", "the sum of 2 and 3 equals 5", "2 plus 3 makes 5", "2+3=5"),
    ("the answer is 5", "the final number is 5", "it comes out as 5, really", "5"),
)


@pytest.mark.parametrize(
    ("style", "answer"),
    [
        (CANONICAL, "2 + 3 = 5. So the answer is 5."),
        (Style("formal", "because", 1, 0, True), "Sure! The final number is 5, bc th sum of 2 & 3 equals 5."),
        (
            Style("casual", "labels", 0, 2, False),
            "Answer: it comes out as 5, really. Why: 2 plus 3 makes 5. That is all.",
        ),
        (Style("short", "arrow", 0, 0, False), "2+3=5 => 5"),
    ],
)
def test_an_answer_word_by_word(style, answer):
    assert style.render(SUM) == answer


def test_a_calculation_has_the_wordings_of_the_answers_above():
    item = next(item for item in items_of("arithmetic", 50) if "+" in item.fact and len(item.fact) == 4)
    a, b, value = item.fact[1], item.fact[3], item.results[3]
    assert [text.replace(a, "A").replace(b, "B").replace(value, "V") for text in item.reasons] == [
        "A + B = V",
        "the sum of A and B equals V",
        "A plus B makes V",
        "A+B=V",
    ]


def test_abbreviations_leave_keys_alone():
    items = [item for domain in DOMAINS for item in items_of(domain, 300)]
    assert not {word for item in items for value in item.key for word in value.split()} & SHORT.keys()


def test_no_two_writers_and_no_two_styles_are_the_same():
    assert len(set(writers_styles(Settings(writers=100)))) == 100
    assert len({style.name for style in STYLES}) == len(STYLES) == 1 + 3 * 8 * 6 * 5 * 2


# --- The two shifts ---------------------------------------------------------------------------------------------------


def test_without_a_shift_of_content_every_writer_has_as_much_of_every_domain():
    found = columns(content_shift=0.0, items=50)
    counts = Counter(zip(found["writer"], found["domain"], strict=True))
    assert set(counts.values()) == {10}
    assert len(counts) == 10 * 5


def test_with_a_full_shift_of_content_a_writer_has_one_domain_and_a_domain_a_group_of_writers():
    found = columns(content_shift=1.0, items=50)
    names = list(DOMAINS)
    assert set(zip(found["writer"], found["domain"], strict=True)) == {(w, names[w % 5]) for w in range(10)}


def test_half_a_shift_of_content_leaves_half_of_the_tasks_to_all_domains():
    found = columns(content_shift=0.5, items=50)
    names = list(DOMAINS)
    rows = zip(found["writer"], found["domain"], strict=True)
    assert set(Counter(writer for writer, name in rows if name == names[int(writer) % 5]).values()) == {25 + 5}


def test_without_a_shift_of_style_every_answer_is_canonical():
    found = columns(style_shift=0.0, items=50)
    assert found["answer"] == found["canonical"]
    assert set(found["reference_style"]) == {"canonical"}


@pytest.mark.parametrize(("shift", "own"), [(1.0, 50), (0.3, 15)])
def test_a_shift_of_style_is_the_share_of_a_writers_answers_in_its_own_style(shift, own):
    found = columns(style_shift=shift, items=50)
    rows = zip(found["writer"], found["reference_style"], strict=True)
    foreign = Counter(row for row in rows if row[1] != "canonical")
    assert set(foreign.values()) == {own}
    assert len(foreign) == len({style for _, style in foreign}) == 10


def test_a_shift_of_style_changes_nothing_but_answers_and_their_style():
    plain, foreign = (columns(style_shift=shift, items=30) for shift in (0.0, 1.0))
    assert {name for name in plain if plain[name] != foreign[name]} == {"answer", "reference_style"}
    assert all(answer != canonical for answer, canonical in zip(foreign["answer"], plain["canonical"], strict=True))


# --- One seed, one set of bytes ---------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_texts_in_another_process_with_other_hashes():
    code = (
        "from engine.data.instructions.corpus import pretraining_texts as texts;"
        "from engine.data import load, DataConfig;import hashlib;"
        "from engine.data.task import TaskChoice, find_task as task;"
        "choice = TaskChoice('language', task('language').Settings());"
        f"data = load(DataConfig(source='{SOURCE}', columns={{'text': 'answer'}}, items=5, seed=3), choice);"
        "print(data.fingerprint, hashlib.sha256(repr(texts(3, 50)).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    config = DataConfig(source=SOURCE, columns={"text": "answer"}, items=5, seed=3)
    texts = hashlib.sha256(repr(pretraining_texts(3, 50)).encode()).hexdigest()
    assert done.stdout.split() == [load(config, LANGUAGE).fingerprint, texts]
    assert load(config.model_copy(update={"seed": 4}), LANGUAGE).fingerprint != done.stdout.split()[0]


def test_the_texts_of_a_seed_never_change():
    """Results in files were computed on them."""
    found = columns(items=20, writers=5)
    corpus = pretraining_texts(0, 40)
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == "0a55da9393a70c4b"
    assert hashlib.sha256(repr(corpus).encode()).hexdigest()[:16] == "8acc617e38e84c91"


# --- As a source ------------------------------------------------------------------------------------------------------


def test_language_modelling_takes_one_of_its_columns():
    data = load(DataConfig(source=SOURCE, columns={"text": "answer"}, items=10), LANGUAGE)
    assert {"writer", "domain", "key", "canonical", "fact", "instruction"} <= data.columns.keys()
    assert data.columns["writer"].dtype == "int64"


def test_validation_rows_are_of_other_facts():
    choice = TaskChoice("language", find_task("language").Settings(length=400))
    whole = load(DataConfig(source=SOURCE, columns={"text": "fact"}, items=20), choice)
    left = load(DataConfig(source=SOURCE, columns={"text": "fact"}, items=20, validation=0.2), choice)
    assert (len(whole), len(left), len(left.test["tokens"])) == (200, 160, 40)
    assert len(set(left.columns["fact"])) == 160


def test_the_test_half_has_a_quarter_as_many_tasks_of_every_writer():
    assert Counter(columns("test", items=40)["writer"]) == dict.fromkeys(range(10), 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [("writers", 0), ("writers", 101), ("items", 0), ("content_shift", 1.1), ("style_shift", -0.1), ("seed", -1)],
)
def test_settings_out_of_range_are_refused_at_their_key(key, value):
    with pytest.raises(ValidationError) as caught:
        DataConfig(source=SOURCE, **{key: value})
    assert [error["loc"] for error in caught.value.errors()] == [(key,)]


def test_other_sources_do_not_take_its_settings_and_it_fills_in_its_own():
    with pytest.raises(ValidationError, match="is not used by digits, only by generated:instructions; leave it out"):
        DataConfig(source="digits", writers=3)
    assert DataConfig(source="digits").writers is None
    full = DataConfig(source=SOURCE, items=7)
    assert (full.writers, full.items, full.content_shift, full.style_shift, full.seed) == (10, 7, 1.0, 1.0, 0)


# --- Pre-training -----------------------------------------------------------------------------------------------------


def test_half_of_the_pairs_are_tasks_and_half_ask_for_the_canonical_style():
    pairs = pretraining_texts(0, 400).pairs
    assert all(prompt.startswith("<task>") and prompt.endswith("<answer>") for prompt, _ in pairs)
    rewriting = [answer for prompt, answer in pairs if "\n" in prompt]
    plain = [answer for prompt, answer in pairs if "\n" not in prompt]
    assert (len(rewriting), len(plain)) == (200, 200)
    assert all(". So the answer is " in answer for answer in rewriting)
    assert 140 < sum(". So the answer is " in answer for answer in plain) < 180


def test_steps_are_asked_for_in_arithmetic_and_code_alone():
    for prompt, _ in pretraining_texts(1, 200).pairs:
        if "\n" in prompt:
            has_steps = prompt.startswith(("<task>Compute", "<task>What is the value of "))
            assert ("step by step" in prompt) == has_steps


def test_every_domain_is_in_the_texts_and_plain_english_is_a_twentieth():
    corpus = pretraining_texts(2, 400)
    begins = ("Is this headline", "Drugs", "Compute", "What is the value of", "Table of", "Convert")
    assert all(any(prompt.startswith(f"<task>{begin}") for prompt, _ in corpus.pairs) for begin in begins)
    assert len(corpus.texts) == 20
    assert all(text.isascii() and "\n" not in text for text in corpus.texts)


def test_acceptance_is_measured_on_answers_in_foreign_styles():
    rows = acceptance_rows(0, 50)
    assert len(rows) == 50
    assert all(row.style != CANONICAL and part_of(row.item.fact) == "acceptance" for row in rows)
    assert all(has_key(row.answer, row.key) for row in rows)


def test_prompts_word_by_word():
    assert task_prompt("Compute 2 + 3.") == "<task>Compute 2 + 3.<answer>"
    assert rewriting_prompt("Compute 2 + 3.", "5!", "Again:") == "<task>Compute 2 + 3.\nAgain: 5!<answer>"
    assert stepwise_prompt("Add.", "5") == "<task>Add.\nSolve it step by step, refer to this answer: 5<answer>"


def test_prompts_and_answers_fit_the_context_of_the_smallest_model():
    """256 tokens of a byte-level tokenizer with a vocabulary of 512, trained on the texts themselves."""
    tokenizers = pytest.importorskip("tokenizers")
    corpus = pretraining_texts(0, 1500)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", "<task>", "<answer>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=512, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([prompt + answer for prompt, answer in corpus.pairs], trainer)

    def tokens(text):
        return len(tokenizer.encode(text).ids)

    answers = [tokens(row.answer) for row in draw_rows(Settings(items=50), "train")]
    assert 100 < max(tokens(prompt) + tokens(answer) for prompt, answer in corpus.pairs) <= 200
    assert min(answers) >= 5
    assert max(answers) <= 75
