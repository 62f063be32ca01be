"""Answers that a language model has put into its own words: asking for them, checking them, and training on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.needs import Needs, Volume
from algorithms.core.payload import EMPTY, NUMBER_BYTES, Payload, Value, memory_part, memory_tensors
from algorithms.core.prompts import REWRITING, STEPWISE
from algorithms.core.settings import setting
from algorithms.core.task import Shard, Task
from algorithms.core.training import Work
from algorithms.nets.adapters import AdaptedModel
from algorithms.nets.generation import Answer, Sampling, generate
from algorithms.parts.averaging import Averaging, ModelT
from algorithms.parts.rewrite_check import Check, accept_rewrite
from algorithms.tasks.instructions import InstructionTask

Targets: TypeAlias = Literal["rewritten", "raw", "canonical"]

Decoding: TypeAlias = Literal["greedy", "sampled"]

MOST_TOKENS = 512

REWRITES_IN_A_BATCH = 32


@dataclass(frozen=True)
class Rewrite:
    """An answer and what the model made of it.

    Attributes:
        ids: tokens that take the answer's place, with that of the end.
        reason: why they are those of the answer itself; "" where the rewrite was accepted.
        text, new_text: the answer, and the rewrite, accepted or not.
        tokens, new_tokens: of both, with those of their ends.
    """

    ids: tuple[int, ...]
    reason: str
    text: str
    new_text: str
    tokens: int
    new_tokens: int


class Rewriting(Averaging[ModelT]):
    """Base of methods whose clients train on answers in the model's own words.

    Once before it first trains (and again every `redistill_every` rounds), client k draws for each of its examples
    y~ ~ f_teacher( . | c, x, y): the teacher sees the task and the client's answer and answers in its own words. The
    teacher is the frozen model alone, with the global adapters where it is asked again. A rewrite that fails the check
    is replaced by the client's own answer, so that the number and the order of examples stay. Rewrites never leave the
    client; n_k does, by which the server knows when to ask for the next `rewrites_at_once`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        targets: Targets = setting(
            "rewritten",
            "answers that take the place of the clients' own: rewritten by the model, the clients' own (raw), or those "
            "of the data's column canonical, as a rewriter without errors would give",
        )
        rewrite_check: Check = setting("format", "how strictly a rewrite is checked before it takes an answer's place")
        prompt: Literal["own words", "stepwise"] = setting("own words", "what the model is asked to do with an answer")
        decoding: Decoding = setting("greedy", "the likeliest token each time, or one drawn by chance")
        temperature: float = setting(0.7, "of sampled decoding", gt=0)
        top_p: float = setting(0.9, "of sampled decoding: share of the probability that is drawn from", gt=0, le=1)
        rewrites_at_once: int = setting(64, "answers that a client rewrites in one step", ge=1)
        redistill_every: int = setting(0, "rounds after which answers are rewritten anew; 0 for never", ge=0)

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        common = super().needs(config, task, clients, work, counts)
        if config.targets == "canonical" and not getattr(task, "has_canonical", False):
            reason = "takes canonical answers (targets: canonical), and the data have no column of them"
            return common.adding(refusals=[f"{reason}: name it by data.columns.canonical"])
        if config.targets != "rewritten":
            return common
        return common.adding(up={"examples": Volume(NUMBER_BYTES)})

    # On the server's side

    def ask_for_rewrites(
        self, last: Mapping[int, int], model: Mapping[str, Tensor], plan: Plan, cohort: Cohort
    ) -> dict[int, int]:
        """Have the clients of a round rewrite their answers who are due; the round in which each client last did.

        Args:
            last: the same before this round.
            model: the global adapters.
        """
        waiting = [client for client in plan.clients if self._is_due(last.get(client.id), plan.round)]
        done = {client: round for client, round in last.items() if client not in {spec.id for spec in waiting}}
        message = Payload.of(weights=model) if self.config.redistill_every else EMPTY
        rewrites = 0
        while waiting:
            rewrites += self.config.rewrites_at_once
            left = []
            for update in cohort.ask(self.rewrite, message, waiting):
                if update.payload.number("examples", "n") <= rewrites:
                    done[update.client] = plan.round
                else:
                    left.append(update.client)
            waiting = [client for client in waiting if client.id in left]
        return done

    def ready(self, plan: Plan, rewritten: Mapping[int, int]) -> Sequence[ClientSpec]:
        """The clients of a round that can train: all but those that were left out while they rewrote."""
        needed = self.config.targets == "rewritten"
        return [client for client in plan.clients if client.id in rewritten or not needed]

    def _is_due(self, last: int | None, round: int) -> bool:
        if self.config.targets != "rewritten":
            return False
        return last is None or bool(self.config.redistill_every and round - last >= self.config.redistill_every)

    # On the client's side

    @client_side
    def rewrite(self, client: Client) -> Reply:
        """Rewrite the client's next answers; n_k for the server, and a row for each answer for the person watching."""
        start = int(client.memory.get("rewrites", 0)) % len(client.shard)
        rows = client.shard.rows[start : start + self.config.rewrites_at_once]
        found = self._rewrites(client, rows, start)
        prompts = self._task.prompts(client.shard, rows)
        columns = self._task.rows_of([(p, rewrite.ids) for p, rewrite in zip(prompts, found, strict=True)])
        before = memory_tensors("rewritten", client.memory) if start else {}
        now = {name: torch.from_numpy(values) for name, values in columns.items()}
        joined = {name: torch.cat([before[name], values]) if before else values for name, values in now.items()}
        memory = {**client.memory, **memory_part("rewritten", joined), "rewrites": start + len(rows)}
        return Reply(
            Payload.of(examples={"n": len(client.shard)}),
            memory,
            metrics={"rewrites": len(rows), "own_answers": sum(bool(rewrite.reason) for rewrite in found)},
            rows=_table(found, start),
            texts={"text": [rewrite.text for rewrite in found], "new_text": [rewrite.new_text for rewrite in found]},
        )

    def _rewrites(self, client: Client, rows: Tensor, start: int) -> list[Rewrite]:
        """The rewrites of some rows, of which the first is the client's number `start`."""
        config, task, net = self.config, self._task, self.kit.network(client.spec.net)
        assert isinstance(net, AdaptedModel)
        tokenizer = net.tokenizer
        request = REWRITING if config.prompt == "own words" else STEPWISE
        own = task.answer_tokens(client.shard, rows)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in own]
        asked = list(zip(task.instructions(client.shard, rows), texts, strict=True))
        prompts = [task.prompt_of(tokenizer, f"{instruction}\n{request} {text}") for instruction, text in asked]
        lengths = [(len(prompt), len(ids)) for prompt, ids in zip(prompts, own, strict=True)]
        most = [min(MOST_TOKENS, 2 * answer + 64, task.context - prompt) for prompt, answer in lengths]
        sampling = Sampling(config.temperature, config.top_p) if config.decoding == "sampled" else None
        seed = client.seed.at(phase="rewrite")
        seeds = [seed.number("sampling", start + place) for place in range(len(rows))] if sampling else []
        with self._teacher(net, client):
            answers = generate(net, prompts, most, REWRITES_IN_A_BATCH, sampling, seeds)
        return [
            self._rewrite_of(tokenizer, ids, instruction, text, answer)
            for ids, (instruction, text), answer in zip(own, asked, answers, strict=True)
        ]

    @contextmanager
    def _teacher(self, net: AdaptedModel, client: Client) -> Iterator[None]:
        """A block in which the network is the teacher: the frozen model, with the adapters that came, if any did."""
        if "weights" in client.received.parts:
            net.load_state_dict(client.received.tensors("weights"))
            yield
            return
        with net.alone():
            yield

    def _rewrite_of(self, tokenizer: Any, own: list[int], instruction: str, text: str, answer: Answer) -> Rewrite:
        """An answer as the model put it, or the client's own where the check says so."""
        words = tokenizer.decode(answer.ids, skip_special_tokens=True)
        reason = accept_rewrite(self.config.rewrite_check, instruction, text, words, answer.is_finished) or ""
        ids = own if reason else [*answer.ids, tokenizer.eos_token_id]
        return Rewrite(tuple(ids), reason, text, words, len(own), len(answer.ids) + answer.is_finished)

    def rewritten_shard(self, client: Client) -> Shard:
        """The client's examples with rewritten answers in the place of its own, as `targets` says."""
        match self.config.targets:
            case "raw":
                return client.shard
            case "canonical":
                return self._task.canonical(client.shard)
        columns = memory_tensors("rewritten", client.memory)
        return Shard(columns, torch.arange(len(client.shard)))

    def remember(self, client: Client) -> dict[str, Value]:
        """The rewrites, as a part of the memory of a step that has them."""
        return {name: value for name, value in client.memory.items() if name.startswith(("rewritten/", "rewrites"))}

    @property
    def _task(self) -> InstructionTask:
        task = self.kit.task
        assert isinstance(task, InstructionTask)
        return task


def _table(rewrites: Sequence[Rewrite], start: int) -> dict[str, Sequence[Any]]:
    """A row for each rewrite."""
    return {
        "item": list(range(start, start + len(rewrites))),
        "accepted": [not rewrite.reason for rewrite in rewrites],
        "reason": [rewrite.reason for rewrite in rewrites],
        "tokens": [rewrite.tokens for rewrite in rewrites],
        "new_tokens": [rewrite.new_tokens for rewrite in rewrites],
    }
