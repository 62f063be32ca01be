"""Benchmark of the distillation pipeline: how much of sampling and labelling it hides behind the student.

    python -m benchmarks.distillation [--steps 300] [--batch 128] [--times 2]

The same job as a plain loop (one thread, and as many as there are cores) and on Ray with one sampler, one teacher and
one train worker. Generator and teacher are sized so that both together take about as long as the student's step. The
time of a step is taken from the last two thirds of the steps; what the whole job took beyond it is the cost of set-up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.distillation.plan import DistilResources
from actors.steps.worker import one_thread
from algorithms.core.distillation import Distillation, Learner, copy_of, distil_here, generate, label, labelled_batch
from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed
from algorithms.nets.classifier import Classifier
from benchmarks.figures import Figure, tell

SHAPE, CLASSES, LATENT = (1, 28, 28), 10, 64


@dataclass(frozen=True)
class GeneratedImages:
    """Images of a small transposed-convolution generator."""

    generator: nn.Module
    batch: int

    def latents(self, index: int) -> dict[str, Tensor]:
        return {"z": torch.randn(self.batch, LATENT, generator=Seed(0).torch("latents", index))}

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        return self.generator(latents["z"]), torch.full((self.batch,), -1)


def generator(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 2 * width * 49),
        nn.Unflatten(1, (2 * width, 7, 7)),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, SHAPE[0], 4, 2, 1),
        nn.Tanh(),
    ).eval()


def classifier(width: int) -> Classifier:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    body = nn.Sequential(*block(SHAPE[0], width), *block(width, 2 * width), nn.Flatten())
    return Classifier(body, nn.Linear(2 * width * 49, CLASSES))


def divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def balanced_job(batch: int, steps: int) -> tuple[Distillation, dict[str, float]]:
    """A job whose sampling and labelling weigh about as much as its student, and the milliseconds of each part."""
    torch.manual_seed(0)
    student = classifier(24)
    for width in range(24, 200, 8):
        job = Distillation(
            GeneratedImages(generator(width // 2), batch), classifier(width), student, divergence, steps, steps, 1e-4
        )
        parts = milliseconds(job)
        if parts["sample"] + parts["label"] >= 0.97 * parts["student"]:
            break
    return job, parts


def milliseconds(job: Distillation) -> dict[str, float]:
    """Time of one batch's parts, one thread, best of several."""
    batch = labelled_batch(job, 0)
    learner = Learner(job, copy_of(job.student))
    return {
        "sample": best(lambda: generate(job.source, job.source.latents(0))),
        "label": best(lambda: label(job.teacher, batch.inputs)),
        "student": best(lambda: learner.step(batch)),
    }


def best(work: Callable[[], object], times: int = 7) -> float:
    """Milliseconds of the fastest of several runs."""
    return 1e3 * min(seconds(work) for _ in range(times))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Pace:
    """Milliseconds of a step, and seconds before the first one."""

    step_ms: float
    setup_s: float


Perform = Callable[[Distillation, Callable[[int], None]], object]
"""Performs a job, and tells how many steps are done."""


def pace(perform: Perform, job: Distillation) -> Pace:
    """The last step counts not: on Ray it is heard of after the job has ended and given everything back."""
    times: list[tuple[int, float]] = []
    whole = seconds(lambda: perform(job, lambda done: times.append((done, time.perf_counter()))))
    (first, since), *_, (last, until) = (each for each in times if job.steps / 3 <= each[0] < job.steps)
    step = (until - since) / (last - first)
    return Pace(step_ms=1e3 * step, setup_s=whole - step * job.steps)


def on_ray(job: Distillation, report: Callable[[int], None]) -> object:
    from actors.distillation.job import distil_on_ray
    from actors.runner import Listener

    with tempfile.TemporaryDirectory() as storage:
        return distil_on_ray(job, DistilResources(), Path(storage), Listener(done=report))


def figures(plain: Sequence[Pace], threads: Sequence[Pace], pipeline: Sequence[Pace]) -> list[Figure]:
    """Figures of a step of the pipeline beside one of the loop, and of the time to set up."""

    def steps(paces: Sequence[Pace]) -> tuple[float, ...]:
        return tuple(pace.step_ms for pace in paces)

    faster = tuple(p.step_ms / r.step_ms for p, r in zip(plain, pipeline, strict=True))
    loop = steps(plain)
    return [
        Figure("distillation: step on Ray against the plain loop", "times faster", faster, "higher", goal=1.4),
        Figure("distillation: step on Ray", "ms", steps(pipeline), loops=loop),
        Figure("distillation: step of the plain loop, all threads", "ms", steps(threads), loops=loop),
        Figure("distillation: setting up on Ray", "s", tuple(pace.setup_s for pace in pipeline)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--times", type=int, default=2)
    asked = parser.parse_args()
    import ray

    with one_thread():
        job, parts = balanced_job(asked.batch, asked.steps)
    print(f"milliseconds of a batch: {json.dumps(parts)}", file=sys.stderr)
    plain, threaded, piped = [], [], []
    ray.init(address="local", num_cpus=os.cpu_count(), log_to_driver=False, logging_level="ERROR")
    try:
        for _ in range(asked.times):
            threaded.append(pace(distil_here, job))
            with one_thread():
                plain.append(pace(distil_here, job))
                piped.append(pace(on_ray, job))
    finally:
        ray.shutdown()
    tell(figures(plain, threaded, piped))


if __name__ == "__main__":
    main()
