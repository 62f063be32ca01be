"""The cost of portable bits: milliseconds of a training step of several networks, native and portable.

    python -m benchmarks.bits [--times 3]

Each measurement is a process of its own on one thread, native and portable in turn; of its tries the fastest counts,
and of the processes the median. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from clusters.bits import PORTABLE, Bits, processor

STEPS, TRIES = 5, 3
"""Training steps of a try, and tries of a process."""

CASES = {
    "mlp, 64 images of 1x28x28": ("mlp", (64, 1, 28, 28)),
    "small_cnn, 32 images of 1x8x8": ("small_cnn", (32, 1, 8, 8)),
    "cnn2, 50 images of 3x32x32": ("cnn2", (50, 3, 32, 32)),
    "resnet8, 32 images of 3x32x32": ("resnet8", (32, 3, 32, 32)),
    "lstm, 32 texts of 64 tokens": ("lstm", (32, 64)),
}
"""Networks by what they are shown: (name, shape of a batch)."""

VOCABULARY, CLASSES = 1000, 10


def step_times(bits: Bits) -> dict[str, float]:
    """Milliseconds of CPU time of one training step, by case, in this process."""
    import torch

    from actors.process import set_kernels

    set_kernels(bits)
    torch.set_num_threads(1)
    return {case: _step_time(net, shape) for case, (net, shape) in CASES.items()}


def _step_time(name: str, shape: tuple[int, ...]) -> float:
    import torch
    from torch.nn.functional import cross_entropy

    from algorithms.nets import build
    from algorithms.nets.forms import Images, Texts

    is_image = len(shape) == 4
    form = Images(shape[1:]) if is_image else Texts(VOCABULARY, shape[1])  # type: ignore[arg-type]
    net, inputs, targets = build(name, form, CLASSES), form.probe(shape[0]), torch.arange(shape[0]) % CLASSES
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    times = []
    for _ in range(TRIES + 1):  # the first one finds caches cold
        start = time.process_time()
        for _ in range(STEPS):
            optimiser.zero_grad()
            cross_entropy(net(inputs), targets).backward()
            optimiser.step()
        times.append((time.process_time() - start) / STEPS)
    return 1000 * min(times[1:])


def measure(bits: Bits) -> dict[str, float]:
    """`step_times` in a process that is started for these bits."""
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    variables = PORTABLE if bits == "portable" else {}
    command = [sys.executable, "-m", "benchmarks.bits", "--bits", bits]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--bits", choices=("native", "portable"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bits:
        print(json.dumps(step_times(asked.bits)))
        return
    found: dict[Bits, list[dict[str, float]]] = {"native": [], "portable": []}
    for _ in range(asked.times):
        for bits, runs in found.items():
            runs.append(measure(bits))
    print(f"On {processor()}:\n\n| network | native, ms a step | portable, ms a step | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for case in CASES:
        native, portable = (statistics.median(run[case] for run in runs) for runs in found.values())
        print(f"| {case} | {native:.2f} | {portable:.2f} | {portable / native:.2f} |")


if __name__ == "__main__":
    main()
