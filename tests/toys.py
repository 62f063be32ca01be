"""A method that exists to watch the machinery: what a step is given, where it runs, what happens when it goes wrong."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.contract import Client, Cohort, Method, Plan, Reply, Terms, Update, client_side
from algorithms.core.needs import Needs, Volume
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.nets import Classifier
from tests.bounded import LIMIT, Group

LOOKS = 6000
"""For a file, a twentieth of a second apart, before it is held for lost."""


def place_in_store(tensor: Tensor) -> int:
    """The offset of a tensor in the file of Ray's object store that this process maps, -1 where it lies elsewhere."""
    place = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        ends, _, offset, *_ = line.split()
        low, high = (int(end, 16) for end in ends.split("-"))
        if "plasma" in line and low <= place < high:
            return place - low + int(offset, 16)
    return -1


def wide(shape: tuple[int, int, int], classes: int, width: int = 1000) -> Classifier:
    """A network that computes little and weighs much: 300 kB for 8x8 images in 10 classes."""
    return Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU()), nn.Linear(width, classes)
    )


def huge(shape: tuple[int, int, int], classes: int) -> Classifier:
    """`wide`, of 12 MB."""
    return wide(shape, classes, width=40_000)


def wait_for(file: Path) -> None:
    """Until a file is there, or it is held for lost."""
    for _ in range(LOOKS):
        if file.exists():
            break
        time.sleep(0.05)


class Gate(nn.Module):
    """Lets everything through as it is; from a number of training batches on, a process waits here for a file."""

    free = 250
    seen = 0

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            Gate.seen += 1
        if Gate.seen > Gate.free:
            wait_for(self._file)
        return inputs


def gated(shape: tuple[int, int, int], classes: int, width: int) -> Classifier:
    """`wide` behind a gate: the file of the width's number in the folder TOY_GATES."""
    inner = wide(shape, classes, width)
    gate = Gate(Path(os.environ["TOY_GATES"]) / str(width))
    return Classifier(nn.Sequential(gate, inner.body), inner.head)


def gated_narrow(shape: tuple[int, int, int], classes: int) -> Classifier:
    """30 kB for 8x8 images."""
    return gated(shape, classes, 100)


def gated_wide(shape: tuple[int, int, int], classes: int) -> Classifier:
    """300 kB for 8x8 images."""
    return gated(shape, classes, 1000)


@dataclass(frozen=True)
class Trace:
    """The answers: one row per client in the order of arrival, and the sum of the tensors."""

    rows: tuple[tuple[float, ...], ...]
    total: Tensor


class Toy(Method[Trace]):
    """Steps that depend on all that a step may depend on, and steps that go wrong."""

    paper = "none"
    State = Trace

    @dataclass(frozen=True, kw_only=True)
    class Config(settings.Config):
        step: str = setting("walk", "name of the step that a round asks for")
        file: str = setting("", "where a step leaves a mark, or looks for one")
        own: bool = setting(False, "whether each client receives a message of its own")
        means: bool = setting(False, "whether a round asks for means and not for updates")
        size: int = setting(4, "elements of the tensor that travels")

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Any, clients: Any, work: Any, counts: Any) -> Needs:
        kinds = {"weights": Volume(), "examples": Volume()}
        return Needs(up=kinds, down=kinds)

    def start(self, clients: Any) -> Trace:
        return Trace((), torch.zeros(self.config.size))

    def round(self, state: Trace, plan: Plan, cohort: Cohort) -> tuple[Trace, dict[str, float]]:
        if self.config.means:
            mean = cohort.means(getattr(self, self.config.step), self.terms, self.message(state, plan))["w"]
            return Trace(((mean.weight,),), mean.result({"w": state.total})["w"]), {}
        rows, total = [], state.total.clone()
        for update in cohort.ask(getattr(self, self.config.step), self.message(state, plan)):
            total += update.payload.tensors("weights")["w"]
            rows.append((float(update.client), *map(float, update.payload.parts["examples"].values())))
        return Trace(tuple(rows), total), {}

    def terms(self, update: Update) -> Terms:
        """The tensor, weighted by the client's calls."""
        return {"w": (update.payload.tensors("weights"), update.payload.number("examples", "calls"))}

    def message(self, state: Trace, plan: Plan) -> Payload | Mapping[int, Payload]:
        """The running total for all, or with the client's number added."""
        if not self.config.own:
            return Payload.of(weights={"w": state.total}, examples={"id": -1})
        return {c.id: Payload.of(weights={"w": state.total + c.id}, examples={"id": c.id}) for c in plan.clients}

    @client_side
    def walk(self, client: Client) -> Reply:
        """Everything that a result may depend on goes into the reply."""
        seen = client.received.tensors("weights")["w"]
        noise = torch.randn(seen.shape, generator=client.seed.torch("noise")) + torch.rand(())
        calls = int(client.memory.get("calls", 0)) + 1
        drift = client.memory.get("drift", torch.zeros(()))
        pixels = client.shard.columns["image"][client.shard.rows].double().mean()
        numbers = {
            "id": client.received.number("examples", "id"),
            "calls": calls,
            "pixels": float(pixels),
            "drift": float(drift),
        }
        return Reply(
            Payload.of(weights={"w": 0.5 * seen + noise}, examples=numbers),
            memory={"calls": calls, "drift": drift + noise.mean()},
            metrics={"noise": float(noise.mean())},
        )

    @client_side
    def pid(self, client: Client) -> Reply:
        """The process that performs the step, and how many threads torch has in it."""
        numbers = {"pid": os.getpid(), "threads": torch.get_num_threads()}
        return Reply(Payload.of(weights=client.received.tensors("weights"), examples=numbers))

    @client_side
    def look_at_data(self, client: Client) -> Reply:
        """The address of the images in the object store that all processes of a machine map."""
        place = place_in_store(client.shard.columns["image"])
        return Reply(Payload.of(weights=client.received.tensors("weights"), examples={"place": place}))

    @client_side
    def send_living(self, client: Client) -> Reply:
        """Sends a tensor of the process that its next step writes into, as a network's own state would be."""
        reply = self.walk(client)
        sent = reply.payload.tensors("weights")["w"]
        self._living = getattr(self, "_living", torch.zeros_like(sent))
        self._living.copy_(sent)
        return Reply(Payload({**reply.payload.parts, "weights": {"w": self._living}}), memory=reply.memory)

    @client_side
    def keep(self, client: Client) -> Reply:
        """Every second client leaves its memory as it was."""
        reply = self.walk(client)
        return Reply(reply.payload, memory=None if client.spec.id % 2 else reply.memory)

    @client_side
    def die_once(self, client: Client) -> Reply:
        """The first to perform client 3's second step is killed in it, as the kernel does when memory runs out."""
        mark = Path(self.config.file)
        if client.spec.id == 3 and client.memory and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.walk(client)

    @client_side
    def fill_once(self, client: Client) -> Reply:
        """The first to perform client 3's step has more than the group of processes that it enters may have."""
        group = Group(Path(self.config.file))
        if client.spec.id == 3 and not group.killed():
            group.enter()
            torch.ones(LIMIT)
        return self.walk(client)

    @client_side
    def die_always(self, client: Client) -> Reply:
        """Client 3 kills whoever performs it."""
        if client.spec.id == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.walk(client)

    @client_side
    def wait_for_others(self, client: Client) -> Reply:
        """Tells a gate that it begins, and goes on when the gate opens for it."""
        import ray

        gate = ray.get_actor("gate")
        ray.get(gate.begin.remote(client.spec.id))
        return self.walk(client)

    @client_side
    def stumble(self, client: Client) -> Reply:
        """Client 2 raises."""
        if client.spec.id == 2:
            raise ArithmeticError("two is one too many")
        return self.walk(client)

    @client_side
    def stumble_once(self, client: Client) -> Reply:
        """Client 2 raises the first time that it performs its second step."""
        mark = Path(self.config.file)
        if client.spec.id == 2 and client.memory and not mark.exists():
            mark.touch()
            raise ArithmeticError("not this time")
        return self.walk(client)

    @client_side
    def diverge(self, client: Client) -> Reply:
        """Client 2 sends NaN, and would remember that it did."""
        reply = self.walk(client)
        if client.spec.id != 2:
            return reply
        wrong = Payload.of(weights={"w": reply.payload.tensors("weights")["w"] * float("nan")})
        return Reply(wrong, memory={"diverged": 1})

    @client_side
    def misshape(self, client: Client) -> Reply:
        """Client 2 sends twice as many entries as it received."""
        reply = self.walk(client)
        if client.spec.id != 2:
            return reply
        return Reply(Payload.of(weights={"w": reply.payload.tensors("weights")["w"].repeat(2)}))

    @client_side
    def rename(self, client: Client) -> Reply:
        """Client 2 sends what it received under another name."""
        reply = self.walk(client)
        if client.spec.id != 2:
            return reply
        return Reply(Payload.of(weights={"v": reply.payload.tensors("weights")["w"]}))

    @client_side
    def hang_once(self, client: Client) -> Reply:
        """The first to perform client 3's step waits for ever."""
        mark = Path(self.config.file)
        if client.spec.id == 3 and not mark.exists():
            mark.touch()
            threading.Event().wait()
        return self.walk(client)

    @client_side
    def stop_once(self, client: Client) -> Reply:
        """The process that first performs client 3's step is stopped as a whole, as on a machine that hangs."""
        mark = Path(self.config.file)
        if client.spec.id == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.walk(client)

    @client_side
    def scribble(self, client: Client) -> Reply:
        """Writes into what it received."""
        client.received.tensors("weights")["w"].add_(1)
        return self.walk(client)

    @client_side
    def ripen(self, client: Client) -> Reply:
        """Remembers a number alone, and from the third step on a tensor too."""
        reply = self.walk(client)
        calls = int(client.memory.get("calls", 0)) + 1
        drift = {} if calls < 3 else {"drift": torch.tensor(float(calls))}
        return Reply(reply.payload, memory={"calls": calls, **drift})

    @client_side
    def scribble_memory(self, client: Client) -> Reply:
        """Writes into its memory where it has one."""
        drift = client.memory.get("drift")
        if isinstance(drift, Tensor):
            drift.add_(1)
        return self.walk(client)

    @client_side
    def send_logits(self, client: Client) -> Reply:
        """Sends a kind that the method does not declare."""
        return Reply(Payload.of(logits=client.received.tensors("weights")))

    @client_side
    def peek(self, client: Client) -> Reply:
        """The network's parameters, so that clients with different networks can be told apart."""
        net = self.kit.network(client.spec.net)
        count = sum(p.numel() for p in net.parameters())
        return Reply(Payload.of(weights=client.received.tensors("weights"), examples={"parameters": count}))

    def whisper(self, client: Client) -> Reply:
        """Not marked, so nobody may be asked for it."""
        return self.walk(client)

    def predictor(self, state: Trace) -> nn.Module:
        return nn.Identity()
