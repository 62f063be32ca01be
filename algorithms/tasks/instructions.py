"""Instruction following: a frozen language model, and low-rank adapters that learn to answer as clients do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.columns import ASKED, ColumnError, Columns, Roles, SettingError, full_column
from algorithms.core.keys import has_key
from algorithms.core.settings import setting
from algorithms.core.task import LABEL, Figure, PreparedTask, Shard, Sums, Trait
from algorithms.nets.adapters import AdaptedModel, Adapter
from algorithms.nets.errors import NetworkError
from algorithms.nets.forms import Inputs, Sequences
from algorithms.nets.generation import Writer, generate
from algorithms.nets.language_models import base_checksum, load_base, load_tokenizer, place_of
from algorithms.tasks._next_token import NO_TARGET, NextToken, nll
from algorithms.tasks._prompts import Template, answer_ids, prompt_end, prompt_ids, usual_template

INSTRUCTION, ANSWER = "instruction", "answer"
"""Roles of the columns of what is asked and of what is to be answered."""

INPUT, CANONICAL, KEY, DOMAIN = "input", "canonical", "key", "domain"
"""Roles of columns that data may have besides: what an instruction is about, which is put after it; the same answer in
one style for all; what a right answer has to hold, in parts with | between them; and the kind of an instruction, by
which figures are told."""

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    ANSWER: ("response", "output"),
    INPUT: ("context",),
    DOMAIN: ("category",),
}
"""Names that well-known data sets have for columns of these roles."""

TOKENS, PROMPT, LENGTH = "tokens", "prompt", "length"
"""Names of the columns of token numbers, int32 (N, context), of how many of them are the prompt, and of how many there
are, int32 (N,)."""

KEY_TEXT, INSTRUCTION_TEXT = "key", "instruction"
"""Names of the columns of keys and of instructions, uint8 (N, longest), UTF-8 with zeros after it."""

Learnt: TypeAlias = Literal["answers", "everything"]
Precision: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class InstructionTask(NextToken):
    """Instruction following by a causal language model that is frozen, with adapters that learn.

    An example is a prompt and its answer, cut into tokens apart, with the token for the end. What is learnt is the
    answer and its end; prompt and padding have no part in the loss. Tokens beyond `context` are cut off, and an example
    of which then nothing is left to learn is left out; both are counted and told.

    Adapters are float32, whatever the precision of the frozen model.

    Attributes:
        base: the language model whose tokenizer makes the tokens.
        vocabulary: of the language model's answers.
        groups: names of the kinds of instructions, whose numbers are the column `label`; () where nothing is said.
        has_canonical: whether the data have canonical answers.
        folder: where `base` lies on this machine, if its name does not say so.
        context, template, learn, precision, checkpointing, generate: see Settings.
        adapter: the form of the adapters.
    """

    title: ClassVar[str] = "instruction following"
    traits: ClassVar[frozenset[Trait]] = frozenset({"language", "adapters"})
    state_kind: ClassVar[str] = "adapters"
    figures: ClassVar[tuple[Figure, ...]] = (*NextToken.figures, Figure("key match", "higher", "%"))
    target: ClassVar[str | None] = None

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        net: str | None = setting(
            None, "language model whose tokenizer makes the tokens; null: the one that the clients have"
        )
        folder: str | None = setting(
            None, "where that model lies on this machine; null: where its name says, or where tiny models are kept"
        )
        context: int = setting(256, "tokens of a prompt and its answer that are read", ge=4)
        template: Template | None = setting(
            None, "layout of a prompt: markers, chat or alpaca; null: what the tokenizer was made for"
        )
        learn: Learnt = setting("answers", "what the loss counts: answers alone, or the prompts too")
        rank: int = setting(8, "rank r of the adapters", ge=1)
        alpha: float = setting(16.0, "of the adapters' scale alpha / r", gt=0)
        targets: tuple[str, ...] = setting(
            (), "last parts of the names of adapted matrices; none: those that peft adapts, as q_proj and v_proj"
        )
        dropout: float = setting(0.0, "share of an adapted matrix's inputs that training leaves out", ge=0, lt=1)
        precision: Precision = setting("float32", "of the frozen model")
        checkpointing: bool = setting(False, "compute activations twice and keep fewer")
        generate: int = setting(0, "test examples that the model answers freely, for the figure key match", ge=0)

    base: str
    vocabulary: int
    context: int
    template: Template
    adapter: Adapter
    groups: tuple[str, ...] = ()
    learn: Learnt = "answers"
    precision: Precision = "float32"
    checkpointing: bool = False
    generate: int = 0
    has_canonical: bool = False
    folder: str | None = None

    # From texts to tokens

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return all(_name(columns, roles, role) is not None for role in (INSTRUCTION, ANSWER))

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        if settings.net is None:
            reason = "instruction following needs the one language model that makes its tokens"
            raise SettingError("net", reason, "name it here, or by clients.net, as llama-nano or hf:FOLDER")
        try:
            tokenizer, vocabulary, longest = load_tokenizer(settings.folder or place_of(settings.net))
        except NetworkError as error:
            remedy = "name a language model by clients.net, as llama-nano or hf:FOLDER"
            raise SettingError("net", str(error), remedy) from error
        if settings.template == "chat" and not tokenizer.chat_template:
            reason = f"the tokenizer of {settings.net} has no chat template"
            raise SettingError("template", reason, f"leave it out for {usual_template(tokenizer)}")
        context = min(settings.context, longest)
        groups = _groups(train, test, roles)
        task = cls(
            base=settings.net,
            vocabulary=vocabulary,
            context=context,
            template=settings.template or usual_template(tokenizer),
            adapter=Adapter(settings.rank, settings.alpha, settings.targets, settings.dropout),
            groups=groups,
            learn=settings.learn,
            precision=settings.precision,
            checkpointing=settings.checkpointing,
            generate=settings.generate,
            folder=settings.folder,
            has_canonical=_name(train, roles, CANONICAL) is not None,
        )
        ours, rows, facts = task._examples(train, roles, "training", tokenizer)
        theirs, _, further = task._examples(test, roles, "test", tokenizer)
        if context < settings.context:
            facts = (f"{settings.net} reads {context} tokens at once, not {settings.context}", *facts)
        return PreparedTask(task, ours, theirs, rows, (*facts, *further))

    def _examples(
        self, columns: Columns, roles: Roles, half: str, tokenizer: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[str, ...]]:
        """The columns of one half, the rows that they are made of, and notes on what was cut or left out."""
        instructions, answers = _instructions(columns, roles, half), _texts(columns, roles, ANSWER, half)
        _refuse_empty(answers, half)
        prompts = [self.prompt_of(tokenizer, text) for text in instructions]
        pairs = [(prompt, answer_ids(tokenizer, text)) for prompt, text in zip(prompts, answers, strict=True)]
        rows = np.array([row for row, (prompt, _) in enumerate(pairs) if len(prompt) < self.context], dtype=np.int64)
        if not len(rows):
            reason = f"every {half} row has a prompt of {self.context} tokens or more"
            raise ColumnError(INSTRUCTION, reason, "raise task.context, as far as the language model bears it")
        cut = sum(len(pairs[row][0]) + len(pairs[row][1]) > self.context for row in rows)
        found = self.rows_of([pairs[row] for row in rows])
        found[INSTRUCTION_TEXT] = _bytes([instructions[row] for row in rows])
        found[LABEL] = _codes(columns, roles, self.groups, half)[rows]
        for role in (CANONICAL, KEY):
            name = _name(columns, roles, role)
            if name:
                texts = full_column(columns, name, role, columns[name].content, half).values
                found |= self._pass_on(
                    role, [str(texts[row]) for row in rows], [pairs[row][0] for row in rows], tokenizer
                )
        return found, rows, _notes(half, len(pairs), len(rows), cut, self.context)

    def prompt_of(self, tokenizer: Any, instruction: str) -> list[int]:
        """Tokens of an instruction's prompt, up to where the answer begins."""
        return prompt_ids(tokenizer, self.template, instruction)

    def _pass_on(
        self, role: str, texts: Sequence[str], prompts: Sequence[list[int]], tokenizer: Any
    ) -> dict[str, np.ndarray]:
        if role == KEY:
            return {KEY_TEXT: _bytes(texts)}
        pairs = [(prompt, answer_ids(tokenizer, text)) for prompt, text in zip(prompts, texts, strict=True)]
        return {f"{CANONICAL}.{name}": values for name, values in self.rows_of(pairs).items()}

    def rows_of(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, np.ndarray]:
        """The columns `TOKENS`, `PROMPT` and `LENGTH` of prompts and answers in tokens, cut off at the context."""
        tokens = np.zeros((len(pairs), self.context), dtype=np.int32)
        for row, (prompt, answer) in enumerate(pairs):
            ids = [*prompt, *answer][: self.context]
            tokens[row, : len(ids)] = ids
        lengths = [min(len(prompt) + len(answer), self.context) for prompt, answer in pairs]
        prompts = [min(len(prompt), self.context) for prompt, _ in pairs]
        return {
            TOKENS: tokens,
            PROMPT: np.array(prompts, dtype=np.int32),
            LENGTH: np.array(lengths, dtype=np.int32),
        }

    def question_columns(self, columns: Columns, roles: Roles) -> tuple[str, ...]:
        return tuple(name for role in (INSTRUCTION, INPUT) if (name := _name(columns, roles, role)))

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        """The prompts, with nothing after them."""
        tokenizer = load_tokenizer(self._place(self.base))[0]
        prompts = [self.prompt_of(tokenizer, text) for text in _instructions(columns, roles, ASKED)]
        for row, prompt in enumerate(prompts):
            if len(prompt) >= self.context:
                reason = f"{ASKED} row {row} has a prompt of {len(prompt)} tokens, and {self.context} are read"
                raise ColumnError(INSTRUCTION, reason, "shorten it")
        return {**self.rows_of([(prompt, ()) for prompt in prompts]), LABEL: np.full(len(prompts), -1)}

    def answers_about(self, predictor: nn.Module, shard: Shard, picks: Tensor) -> dict[str, np.ndarray]:
        """`answer`, which the model writes by the likeliest token each time, object (B,); and `finished`, bool (B,):
        whether it ended there by itself, or because it reads no more tokens."""
        assert isinstance(predictor, Writer)
        prompts = self.prompts(shard, shard.rows[picks])
        found = generate(predictor, prompts, [self.context - len(prompt) for prompt in prompts])
        texts = [predictor.tokenizer.decode(one.ids, skip_special_tokens=True) for one in found]
        return {"answer": np.array(texts, dtype=object), "finished": np.array([one.is_finished for one in found])}

    # What networks take and answer

    @property
    def form(self) -> Sequences:
        return Sequences(self.vocabulary, self.context)

    @property
    def outputs(self) -> int:
        return self.vocabulary

    @property
    def class_names(self) -> tuple[str, ...]:
        """The kinds of instructions, which are told apart in partitions and figures, and predicted by nobody."""
        return self.groups

    def network(self, name: str, width: float = 1.0) -> nn.Module:
        """A frozen language model with fresh adapters; `width` is the fraction of their rank.

        Raises:
            NetworkError: there is no such model, its tokens are others than the task's, or such adapters do not fit it.
        """
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.precision]
        base: Any
        base, tokenizer = load_base(self._place(name), dtype, torch.device("cpu"))
        if name != self.base and tokenizer.get_vocab() != load_tokenizer(self._place(self.base))[0].get_vocab():
            raise NetworkError(f"{name} has other tokens than {self.base}, whose tokenizer makes the task's")
        if self.checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            return AdaptedModel(base, tokenizer, self.adapter, width)
        except NetworkError as error:
            raise NetworkError(f"{name} {error}") from error

    def _place(self, name: str) -> str:
        """The folder or the name on the hub of a language model."""
        return self.folder if self.folder and name == self.base else place_of(name)

    def foundation(self, name: str) -> str:
        """A checksum of the frozen model."""
        return base_checksum(self._place(name))

    # Batches

    @property
    def is_random(self) -> bool:
        """True: a batch is as long as its longest example, so that several cannot be made at a time."""
        return True

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Tokens, int64 (B, T), T the longest example's less one, 0 after an end; and those that come next, alike,
        `NO_TARGET` in the prompt and after the end. Nothing is drawn."""
        rows = shard.rows[picks]
        prompt, length = (shard.columns[name][rows].long() for name in (PROMPT, LENGTH))
        longest = max(int(length.max()), 2) if len(rows) else 2
        tokens = shard.columns[TOKENS][rows][:, :longest].to(device).long()
        places = torch.arange(1, longest, device=device)
        first = (prompt if self.learn == "answers" else torch.ones_like(prompt)).to(device)[:, None]
        counts = (places >= first) & (places < length.to(device)[:, None])
        return tokens[:, :-1], tokens[:, 1:].masked_fill(~counts, NO_TARGET)

    # How good an answer is

    def report(self, sums: Sums) -> dict[str, float]:
        """As of all next tokens; and the share of free answers that hold every part of their key."""
        asked = sums.get("asked", torch.tensor(0))
        match = float(sums["matched"] / asked) if int(asked) else float("nan")
        return {**super().report(sums), "key match": match}

    def by_class(self, sums: Sums) -> dict[str, Tensor]:
        """Loss and perplexity by the kind of instruction."""
        if not self.groups or not sums:
            return {}
        nlls, tokens = (torch.stack([sums[f"{n}/{g}"].double() for g in range(len(self.groups))]) for n in _BY_GROUP)
        loss = nlls / torch.where(tokens > 0, tokens, torch.nan)
        return {"loss": loss, "perplexity": loss.exp()}

    def group_sums(self, outputs: Tensor, targets: Tensor, labels: Tensor) -> Sums:
        """`nll` and `tokens` of each kind of instruction, as `nll/3`."""
        each, counts = nll_and_tokens(outputs, targets)
        return {
            f"{name}/{group}": values[labels == group].sum()
            for group in range(len(self.groups))
            for name, values in (("nll", each), ("tokens", counts))
        }

    def generation_sums(self, predictor: nn.Module, shard: Shard) -> Sums:
        """`asked`, examples that the model answered freely, and `matched`, those whose answer holds the whole key."""
        if not self.generate or KEY_TEXT not in shard.columns or not isinstance(predictor, Writer):
            return {}
        rows = shard.rows[spread(len(shard), self.generate)]
        prompts, keys = self.prompts(shard, rows), _strings(shard.columns[KEY_TEXT][rows])
        room = [self.context - len(prompt) for prompt in prompts]
        found = generate(predictor, prompts, room)
        texts = [predictor.tokenizer.decode(one.ids, skip_special_tokens=True) for one in found]
        hits = sum(has_key(text, key) for text, key in zip(texts, keys, strict=True))
        return {"asked": torch.tensor(len(rows)), "matched": torch.tensor(hits)}

    def prompts(self, shard: Shard, rows: Tensor) -> list[list[int]]:
        """Tokens of the prompts of some rows of the columns."""
        tokens, lengths = shard.columns[TOKENS][rows], shard.columns[PROMPT][rows]
        return [ids[:length].tolist() for ids, length in zip(tokens, lengths.tolist(), strict=True)]

    def instructions(self, shard: Shard, rows: Tensor) -> list[str]:
        """The instructions of some rows of the columns, with what they are about."""
        return _strings(shard.columns[INSTRUCTION_TEXT][rows])

    def canonical(self, shard: Shard) -> Shard:
        """The same examples with canonical answers.

        Raises:
            ValueError: the data have none.
        """
        names = {name: f"{CANONICAL}.{name}" for name in (TOKENS, PROMPT, LENGTH)}
        if not shard.columns.keys() >= set(names.values()):
            raise ValueError("the data have no column of canonical answers (data.columns.canonical)")
        return Shard({**shard.columns, **{n: shard.columns[theirs] for n, theirs in names.items()}}, shard.rows)

    def prompt_lengths(self, ids: Tensor) -> Tensor:
        """int64 (B,): the tokens before the answers of token ids, (B, T); T where no answer begins."""
        end = torch.tensor(self.prompt_end, device=ids.device)
        if ids.shape[1] < len(end):
            return torch.full((len(ids),), ids.shape[1], device=ids.device)
        ends_here = (ids.unfold(1, len(end), 1) == end).all(2)
        first = ends_here.int().argmax(1) + len(end)
        return torch.where(ends_here.any(1), first, ids.shape[1])

    @cached_property
    def prompt_end(self) -> list[int]:
        """Tokens with which every prompt ends."""
        return prompt_end(load_tokenizer(self._place(self.base))[0], self.template)

    def answer_tokens(self, shard: Shard, rows: Tensor) -> list[list[int]]:
        """Tokens of the answers of some rows of the columns, their ends included."""
        columns = (shard.columns[name][rows] for name in (TOKENS, PROMPT, LENGTH))
        return [ids[start:end].tolist() for ids, start, end in zip(*columns, strict=True)]


_BY_GROUP = ("nll", "tokens")


def nll_and_tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """float64 (B,) and int64 (B,), on the CPU: the summed cross-entropy of each example, and its tokens."""
    each = nll(outputs, targets).detach().double().sum(1).cpu()
    return each, (targets != NO_TARGET).sum(1).cpu()


def spread(count: int, most: int) -> Tensor:
    """int64: at most so many positions of `count`, evenly spread over them."""
    if most >= count:
        return torch.arange(count)
    return (torch.arange(most) * count) // most


def _name(columns: Columns, roles: Roles, role: str) -> str | None:
    """The column of a role: the one that is named, or the one of that name or a usual one; None where there is none."""
    if role in roles:
        return roles[role][0]
    return next((name for name in (role, *OTHER_NAMES.get(role, ())) if name in columns), None)


def _texts(columns: Columns, roles: Roles, role: str, half: str) -> list[str]:
    name = _name(columns, roles, role)
    if name is None or name not in columns:
        remedy = f"say which by data.columns: {{{role}: NAME}}; there are {', '.join(columns)}"
        raise ColumnError(role, f"no column of the {half} rows is the {role}", remedy)
    values = columns[name].values
    if role == INPUT:
        return ["" if value is None else str(value) for value in values]
    if columns[name].content not in ("text", "category"):
        raise ColumnError(role, f"column {name!r} holds {columns[name].content} values", "name a column of texts")
    return ["" if value is None else str(value) for value in values]


def _instructions(columns: Columns, roles: Roles, half: str) -> list[str]:
    """Each row's instruction, and below it what it is about."""
    texts = _texts(columns, roles, INSTRUCTION, half)
    inputs = _texts(columns, roles, INPUT, half) if _name(columns, roles, INPUT) else [""] * len(texts)
    return [f"{text}\n{about}" if about else text for text, about in zip(texts, inputs, strict=True)]


def _refuse_empty(answers: Sequence[str], half: str) -> None:
    empty = [row for row, text in enumerate(answers) if not text.strip()]
    if empty:
        raise ColumnError(
            ANSWER, f"{half} row {empty[0]} has no answer", f"leave such rows out; there are {len(empty)}"
        )


def _groups(train: Columns, test: Columns, roles: Roles) -> tuple[str, ...]:
    name = _name(train, roles, DOMAIN)
    if name is None:
        return ()
    found = [columns[name] for columns in (train, test) if name in columns]
    return tuple(sorted({word for column in found for word in _words(column)}))


def _words(column: Any) -> list[str]:
    if column.content == "class":
        return [column.names[value] for value in column.values]
    return [str(value) for value in column.values]


def _codes(columns: Columns, roles: Roles, groups: Sequence[str], half: str) -> np.ndarray:
    name = _name(columns, roles, DOMAIN)
    count = len(next(iter(columns.values())))
    if name is None or name not in columns:
        return np.full(count, -1 if groups else 0, dtype=np.int64)
    numbers = {group: number for number, group in enumerate(groups)}
    return np.array([numbers[word] for word in _words(columns[name])], dtype=np.int64)


def _bytes(texts: Sequence[str]) -> np.ndarray:
    codes = [text.encode() for text in texts]
    found = np.zeros((len(codes), max(map(len, codes), default=0)), dtype=np.uint8)
    for row, one in enumerate(codes):
        found[row, : len(one)] = np.frombuffer(one, dtype=np.uint8)
    return found


def _strings(codes: Tensor) -> list[str]:
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in codes]


def _notes(half: str, whole: int, rest: int, cut: int, context: int) -> tuple[str, ...]:
    notes = []
    if rest < whole:
        notes.append(f"{whole - rest} of {whole} {half} rows are left out: their prompts fill all {context} tokens")
    if cut:
        notes.append(f"{cut} of {rest} {half} rows are longer than {context} tokens and were cut off")
    return tuple(notes)
