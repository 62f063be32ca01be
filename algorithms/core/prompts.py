"""Texts with which a language model is asked: for an answer, or for a given answer in its own words.

`TASK` and `ANSWER` are special tokens of a tokenizer that has them. Everything before the answer is prompt and no
target of learning. The wording is short, as models with a context of 256 tokens read it too.
"""

from __future__ import annotations

TASK = "<task>"
"""Marker before the task."""

ANSWER = "<answer>"
"""Marker after which the model answers."""

REWRITING = "Say it in your own words, keep every fact:"
"""The request for another wording of an answer that follows."""

STEPWISE = "Solve it step by step, refer to this answer:"
"""The request for the steps that lead to an answer, as Yang et al. (2024, arXiv 2402.13669) ask where values count."""


def task_prompt(instruction: str) -> str:
    """The prompt of a task."""
    return f"{TASK}{instruction}{ANSWER}"


def rewriting_prompt(instruction: str, answer: str, request: str = REWRITING) -> str:
    """The prompt for an answer's facts in the model's own words."""
    return f"{TASK}{instruction}\n{request} {answer}{ANSWER}"


def stepwise_prompt(instruction: str, answer: str, request: str = STEPWISE) -> str:
    """The prompt for the steps that lead to an answer, for arithmetic, classification and calls of functions."""
    return rewriting_prompt(instruction, answer, request)
