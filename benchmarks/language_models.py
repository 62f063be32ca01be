"""Language models against plain peft: local steps, generation, exchange of adapters, memory of many clients.

    python -m benchmarks.language_models [--model llama-micro] [--times 5]

A model of random weights, as tiny as its name says; one process, one thread. The plain loop is peft's own adapters of
the same rank in transformers' model, trained by torch's AdamW on the same batches; generation is transformers' own
`generate` on the same prompts in the same batches. The goals: steps at most 1.15 times the plain loop's, generation at
least 0.9 times as fast.
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.steps.worker import one_thread
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.task import Shard
from algorithms.core.training import Batches, Work, fit
from algorithms.nets.adapters import AdaptedModel, Adapter
from algorithms.nets.generation import generate
from algorithms.nets.language_models import TINY_MODELS, fresh_model, peft_package, shared_copy
from algorithms.tasks.instructions import LENGTH, PROMPT, TOKENS, InstructionTask
from benchmarks.figures import Figure, seconds_of, tell

RANK, ALPHA = 4, 8.0
EXAMPLES, PROMPT_LENGTH, LONGEST, BATCH, STEPS = 160, 40, 96, 16, 20
NEW_TOKENS = 32
CLIENTS = 200
TARGETS = ("q_proj", "v_proj")
WORK = Work(steps=STEPS, epochs=None, batch=BATCH, lr=1e-3, optimiser="adamw", weight_decay=0.01)


class NoTokenizer:
    """The one thing that generation asks of a tokenizer: no answer ends before its time."""

    eos_token_id, pad_token_id = None, 0


def examples(vocabulary: int) -> Shard:
    """Random tokens, prompts of one length and answers of many."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocabulary, (EXAMPLES, LONGEST), generator=generator, dtype=torch.int32)
    lengths = torch.randint(PROMPT_LENGTH + 8, LONGEST + 1, (EXAMPLES,), generator=generator, dtype=torch.int32)
    columns = {TOKENS: tokens, PROMPT: torch.full((EXAMPLES,), PROMPT_LENGTH, dtype=torch.int32), LENGTH: lengths}
    return Shard(columns, torch.arange(EXAMPLES))


def peft_model(base: nn.Module) -> nn.Module:
    """The same adapters as peft makes them."""
    peft = peft_package()
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0)
    wrapped: nn.Module = peft.get_peft_model(copy.deepcopy(base), config)
    return wrapped


def plain_steps(model: nn.Module, task: InstructionTask, shard: Shard) -> None:
    """A client's round as one would write it with peft."""
    order = Batches(EXAMPLES, BATCH, Seed(0))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=WORK.lr, weight_decay=WORK.weight_decay)
    model.train()
    for position in range(STEPS):
        ids, targets = task.batch(shard, order[position])
        assert isinstance(ids, Tensor)
        optimiser.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        optimiser.step()


def plain_generation(model: nn.Module, prompts: Tensor) -> None:
    """Answers of `NEW_TOKENS` tokens to all prompts, in batches."""
    model.eval()
    for some in prompts.split(BATCH):
        mask = torch.ones_like(some)
        model.generate(  # type: ignore[operator]
            input_ids=some, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )


def versus(
    name: str, ours: Callable[[], None], theirs: Callable[[], None], times: int, goal: float
) -> Iterator[Figure]:
    """Seconds of both in turn, after one of each that counts nowhere."""
    ours(), theirs()
    mine, plain = [], []
    for _ in range(times):
        mine.append(seconds_of(ours))
        plain.append(seconds_of(theirs))
    yield Figure(name, "s", tuple(mine), loops=tuple(plain))
    ratios = tuple(a / b for a, b in zip(mine, plain, strict=True))
    yield Figure(f"{name} against plain peft", "times", ratios, goal=goal)


def figures(model: str, times: int) -> Iterator[Figure]:
    """All figures of one tiny model."""
    base = fresh_model(model, 0).requires_grad_(False)
    vocabulary = TINY_MODELS[model].vocabulary
    task = InstructionTask(model, vocabulary, LONGEST, "markers", Adapter(RANK, ALPHA, TARGETS))
    shard, net = examples(vocabulary), AdaptedModel(shared_copy(base), NoTokenizer(), task.adapter)
    plain = peft_model(base)
    yield from versus(
        f"{STEPS} local steps of {model}",
        lambda: fit(net, task, shard, WORK, Seed(0)),
        lambda: plain_steps(plain, task, shard),
        times,
        goal=1.15,
    )
    prompts = shard.columns[TOKENS][:64, :PROMPT_LENGTH].long()
    lists, most = prompts.tolist(), [NEW_TOKENS] * 64
    yield from versus(
        f"64 answers of {model}",
        lambda: generate(net, lists, most, BATCH),
        lambda: plain_generation(plain, prompts),
        times,
        goal=1 / 0.9,
    )
    states = [snapshot(net) for _ in range(2)]
    yield Figure(
        f"exchange of the adapters of {model}",
        "s",
        tuple(seconds_of(partial(net.load_state_dict, states[turn % 2])) for turn in range(times)),
    )
    yield from memory(net, base, model)


def memory(net: AdaptedModel, base: nn.Module, model: str) -> Iterator[Figure]:
    """Bytes of many clients' adapters and of the frozen model's second tree of modules, in MiB of resident memory."""
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    clients = [snapshot(net) for _ in range(CLIENTS)]
    trees = [AdaptedModel(shared_copy(base), NoTokenizer(), net.adapter) for _ in range(4)]
    grown = (process.memory_info().rss - before) / 2**20
    yield Figure(f"{len(clients)} clients' adapters and {len(trees)} networks over one {model}", "MiB", (grown,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-micro", choices=sorted(TINY_MODELS))
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    with one_thread():
        for figure in figures(asked.model, asked.times):
            tell([figure])


if __name__ == "__main__":
    main()
