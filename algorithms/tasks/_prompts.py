"""Layouts in which an instruction is put to a language model."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Literal, TypeAlias

from algorithms.core.prompts import ANSWER, TASK, task_prompt

Template: TypeAlias = Literal["markers", "chat", "alpaca"]
"""The layout of a prompt.

- `markers`: the tokens <task> and <answer> before each part, of the tiny models made here;
- `chat`: the tokenizer's own chat template, the instruction being what the user says;
- `alpaca`: headings, as the Alpaca data have them.
"""


def usual_template(tokenizer: Any) -> Template:
    """The layout that a tokenizer was made for."""
    if {TASK, ANSWER} <= tokenizer.get_vocab().keys():
        return "markers"
    return "chat" if tokenizer.chat_template else "alpaca"


def prompt_ids(tokenizer: Any, template: Template, instruction: str) -> list[int]:
    """Tokens of a prompt, up to where the answer begins.

    Prompt and answer are cut into tokens apart, so that where one ends never depends on the other.
    """
    if template == "chat":
        turns = [{"role": "user", "content": instruction}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return token_ids(tokenizer, text)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if template == "markers":
        return [*start, *token_ids(tokenizer, task_prompt(instruction))]
    return [*start, *token_ids(tokenizer, f"### Instruction:\n{instruction}\n\n### Response:\n")]


_LAST_LETTERS = "a7?)\n"
"""Ends of instructions, each of which a tokenizer may join otherwise with what follows."""


def prompt_end(tokenizer: Any, template: Template) -> list[int]:
    """The tokens in which every prompt ends, whatever the instruction."""
    prompts = [prompt_ids(tokenizer, template, f"x{letter}") for letter in _LAST_LETTERS]
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*map(reversed, prompts), strict=False))
    return [tokens[0] for tokens in alike][::-1]


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of an answer and of its end."""
    return [*token_ids(tokenizer, answer), tokenizer.eos_token_id]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text, without any that a tokenizer adds by itself."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
