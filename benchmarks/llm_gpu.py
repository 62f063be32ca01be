"""FedSDR's two branches on a model shaped like Llama-2-7B, with random weights: memory, tokens a second, bytes.

    python -m benchmarks.llm_gpu [--device cuda] [--rounds 2] [--shape 7b]

A test of the system and not of what it learns: weights and texts are random. For each round and client it says the
seconds and the peak of the device's memory, the tokens a second of both stages and of the rewriting, and the bytes that
go each way beside those of the formula. `--device cpu --shape nano` tries out the code on a processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot, tensor_bytes
from algorithms.core.task import Shard
from algorithms.core.training import Work, fit
from algorithms.nets.adapters import AdaptedModel, Adapter, Branch, freeze
from algorithms.nets.generation import generate
from algorithms.nets.language_models import transformers_package
from algorithms.tasks.instructions import LENGTH, PROMPT, TOKENS, InstructionTask
from benchmarks.figures import Figure, tell
from benchmarks.language_models import NoTokenizer


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model and of the work on it."""

    vocabulary: int
    size: int
    hidden: int
    layers: int
    heads: int
    rank: int
    context: int
    batch: int
    piece: int
    steps: int
    examples: int


SHAPES = {
    "7b": Shape(32_000, 4096, 11_008, 32, 32, rank=32, context=512, batch=16, piece=4, steps=10, examples=64),
    "nano": Shape(512, 64, 176, 2, 4, rank=4, context=48, batch=4, piece=2, steps=2, examples=8),
}
TARGETS = ("q_proj", "v_proj")
CLIENTS = 2


def base_of(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen model of random weights, made where it stays."""
    transformers = transformers_package()
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.size,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=max(shape.context, 512),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with device:
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    return model.eval().requires_grad_(False)


def examples(shape: Shape) -> Shard:
    """Random tokens; half of each example is its prompt."""
    tokens = torch.randint(1, shape.vocabulary, (shape.examples, shape.context), dtype=torch.int32)
    half, whole = (torch.full((shape.examples,), n, dtype=torch.int32) for n in (shape.context // 2, shape.context))
    return Shard({TOKENS: tokens, PROMPT: half, LENGTH: whole}, torch.arange(shape.examples))


def figures(shape: Shape, name: str, device: torch.device, rounds: int) -> Iterator[Figure]:
    """All figures, in the order of what happens."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    start = time.perf_counter()
    base = base_of(shape, device, dtype)
    yield Figure(f"{name}: making the model", "s", (time.perf_counter() - start,))
    adapter = Adapter(shape.rank, 2.0 * shape.rank, TARGETS)
    task = InstructionTask(name, shape.vocabulary, shape.context, "markers", adapter)
    net = AdaptedModel(base, NoTokenizer(), adapter).to(device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in base.parameters())
    yield Figure(f"{name}: frozen weights", "GB", (weights / 1e9,))
    sent = tensor_bytes(snapshot(net))
    d, layers = shape.size, shape.layers
    formula = 4 * shape.rank * layers * len(TARGETS) * (d + d)
    if sent != formula:
        raise SystemExit(f"a client sends {sent} bytes, where the formula has {formula}")
    yield Figure(f"{name}: adapters, each way, client and round", "MB", (sent / 1e6,))
    shard = examples(shape)
    yield _rewriting(net, shape, shard, name, device)
    for round in range(rounds):
        for client in range(CLIENTS):
            yield from _round(net, task, shape, shard, f"{name}, round {round + 1}, client {client}", device)


def _rewriting(net: AdaptedModel, shape: Shape, shard: Shard, name: str, device: torch.device) -> Figure:
    prompts = shard.columns[TOKENS][:, : shape.context // 2].tolist()
    new = shape.context // 4
    start = time.perf_counter()
    generate(net, prompts, [new] * len(prompts), shape.batch)
    _wait(device)
    return Figure(f"{name}: rewriting", "tokens/s", (len(prompts) * new / (time.perf_counter() - start),), "higher")


def _round(
    net: AdaptedModel, task: InstructionTask, shape: Shape, shard: Shard, name: str, device: torch.device
) -> Iterator[Figure]:
    work = Work(steps=shape.steps, epochs=None, batch=shape.batch, lr=5e-5, optimiser="adamw", micro_batch=shape.piece)
    local: Branch = net.new_branch()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for stage in ("smoothing", "rectification"):
        start = time.perf_counter()
        if stage == "smoothing":
            with freeze(net), net.beside(local):
                fit(local, task, shard, work, Seed(0), objective=lambda _, i, t: task.loss(net(i), t))
        else:
            with freeze(local), net.beside(local):
                fit(net, task, shard, work, Seed(0))
        _wait(device)
        tokens = shape.steps * shape.batch * (shape.context - 1)
        yield Figure(f"{name}: {stage}", "tokens/s", (tokens / (time.perf_counter() - start),), "higher")
    if device.type == "cuda":
        yield Figure(f"{name}: peak of memory", "GB", (torch.cuda.max_memory_allocated(device) / 1e9,))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="7b", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --device cpu --shape nano tries out the code on a processor")
    for figure in figures(SHAPES[asked.shape], asked.shape, torch.device(asked.device), asked.rounds):
        tell([figure])


if __name__ == "__main__":
    main()
