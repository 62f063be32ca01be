"""Rules between the keys of a configuration, each apart so that all violations can be reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from engine.config.own_code import named_modules
from engine.config.problems import fields_at
from engine.config.schema import RateScheduleConfig
from engine.errors import MISSING, Problem


class Unclear(Exception):
    """A rule asked for a value that is itself wrong or missing."""


class Look:
    """Values of a tree by place, with the defaults of keys that are not there."""

    def __init__(self, model: type[BaseModel], tree: Any, problems: Sequence[Problem]) -> None:
        self._model, self._tree = model, tree
        self._wrong = [problem.place for problem in problems]

    def __call__(self, place: str) -> Any:
        """The value at a place such as `clients.lr`.

        Raises:
            Unclear: this place, or one above or below it, has a problem of its own.
        """
        if any(_within(place, wrong) or _within(wrong, place) for wrong in self._wrong):
            raise Unclear
        path = tuple(place.split("."))
        value = self._tree
        for name in path:
            if not isinstance(value, dict) or name not in value:
                return self._default(path)
            value = value[name]
        return value

    def _default(self, path: tuple[str, ...]) -> Any:
        field = fields_at(self._model, path[:-1], self._tree).get(path[-1])
        if field is None or field.is_required():
            raise Unclear
        return field.get_default(call_default_factory=True)


def _within(inner: str, outer: str) -> bool:
    return f"{inner}.".startswith(f"{outer}.")


def either_steps_or_epochs(look: Look) -> Iterator[Problem]:
    """A round's work is counted in one unit."""
    steps, epochs = look("clients.steps"), look("clients.epochs")
    if (steps is None) == (epochs is None):
        both = {"steps": steps, "epochs": epochs}
        yield Problem("clients", both, "must hold either steps or epochs: give one, and null for the other")


def cohort_within_clients(look: Look) -> Iterator[Problem]:
    """No more clients can be asked than there are."""
    cohort, clients = look("clients.cohort"), look("partition.clients")
    if cohort is not None and clients is not None and cohort > clients:
        yield Problem("clients.cohort", cohort, f"must be at most partition.clients = {clients}, or null for all")


def networks_for_all(look: Look) -> Iterator[Problem]:
    """A mapping of networks says how many clients have each."""
    nets, clients = look("clients.net"), look("partition.clients")
    if isinstance(nets, dict) and clients is not None and sum(nets.values()) != clients:
        found = sum(nets.values())
        yield Problem(
            "clients.net", nets, f"is for {found} clients; the counts must sum to partition.clients = {clients}"
        )


def ray_settings_with_ray(look: Look) -> Iterator[Problem]:
    """Hosts and addresses mean nothing to a run inside this process."""
    if look("runner.kind") == "ray":
        return
    for key in ("hosts", "address"):
        value = look(f"runner.{key}")
        if value is not None:
            yield Problem(f"runner.{key}", value, "is for Ray; leave it null, or set runner.kind: ray")
    if look("runner.placement") != "auto":
        yield Problem(
            "runner.placement", look("runner.placement"), "is for Ray; leave it auto, or set runner.kind: ray"
        )


def code_that_hosts_can_import(look: Look) -> Iterator[Problem]:
    """Hosts are other processes, in which a script's own code, or that of a notebook's cell, is nowhere."""
    if look("runner.kind") != "ray":
        return
    named = {"clients": {"net": look("clients.net")}, "method": look("method"), "task": look("task")}
    for place, module in named_modules(named).items():
        if module == "__main__":
            reason = (
                "is defined in the script itself or in a notebook's cell, where hosts on Ray cannot import it; put it "
                "into a file beside, as mine.py (in a notebook: begin the cell with %%writefile mine.py), and name it "
                "mine:NAME, or import it from there; or set runner.kind: inline"
            )
            yield Problem(place, module, reason)


def hosts_when_pooled(look: Look) -> Iterator[Problem]:
    """Dedicated placement has one host a client, no other number."""
    if look("runner.placement") == "dedicated" and look("runner.hosts") is not None:
        reason = "is for pooled placement; leave it null, since dedicated placement has one host for each client"
        yield Problem("runner.hosts", look("runner.hosts"), reason)


def gpu_shares_with_cuda(look: Look) -> Iterator[Problem]:
    """A share of a GPU is for those who compute on it."""
    if look("runner.device") == "cuda":
        return
    for place in ("runner.gpus", "runner.distillation.gpus"):
        if look(place) > 0:
            yield Problem(place, look(place), "must be 0 with runner.device: cpu; or set runner.device: cuda")


def portable_bits_on_cpu(look: Look) -> Iterator[Problem]:
    """Kernels of cards are their own: no variable makes them those of another."""
    if look("runner.bits") == "portable" and look("runner.device") == "cuda":
        yield Problem("runner.bits", "portable", "must be native with runner.device: cuda; or set runner.device: cpu")


OPTIMISERS = {"momentum": ("sgd",), "betas": ("adam", "adamw"), "eps": ("adam", "adamw")}
"""Settings of `clients` that some optimisers know, and which these are."""


def setting_of_the_optimiser(name: str, look: Look) -> Iterator[Problem]:
    """A setting that the optimiser does not know would do nothing."""
    chosen, value, knowing = look("clients.optimiser"), look(f"clients.{name}"), OPTIMISERS[name]
    if value and chosen not in knowing:
        own = [other for other, others in OPTIMISERS.items() if chosen in others]
        reason = f"is a setting of {' and '.join(knowing)}, but clients.optimiser is {chosen}"
        remedy = f"which has {' and '.join(own)}; leave it out, or set clients.optimiser: {knowing[0]}"
        yield Problem(f"clients.{name}", value, f"{reason}, {remedy}")


def setting_of_the_schedule(name: str, look: Look) -> Iterator[Problem]:
    """Falls of the rate are of `step`."""
    place, chosen = f"clients.schedule.{name}", look("clients.schedule.name")
    if chosen != "step" and look(place) is not None:
        reason = f"is a setting of step, but clients.schedule.name is {chosen}; leave it out, or set the name to step"
        yield Problem(place, look(place), reason)


def falling_rate_has_its_rounds(look: Look) -> Iterator[Problem]:
    """A rate of `step` falls every so many rounds, or after those of a list."""
    if look("clients.schedule.name") != "step":
        return
    every, falls = look("clients.schedule.every"), look("clients.schedule.falls")
    if every is None and falls is None:
        yield _missing_of_step("every")
    elif every is not None and falls is not None:
        yield Problem("clients.schedule.every", every, "stands beside clients.schedule.falls; leave one out")


def falling_rate_has_a_factor(look: Look) -> Iterator[Problem]:
    """A rate of `step` falls by a factor."""
    if look("clients.schedule.name") == "step" and look("clients.schedule.factor") is None:
        yield _missing_of_step("factor")


def _missing_of_step(name: str) -> Problem:
    meaning = str(RateScheduleConfig.model_fields[name].description).removeprefix("of step: ")
    return Problem(f"clients.schedule.{name}", MISSING, f"is needed where clients.schedule.name is step: {meaning}")


def warmup_of_the_rate_ends(look: Look) -> Iterator[Problem]:
    """The whole rate is reached in the last round of its warm-up."""
    warmup, rounds = look("clients.schedule.warmup"), look("rounds")
    if warmup > rounds:
        yield Problem("clients.schedule.warmup", warmup, f"must be at most rounds = {rounds}, or lr is never reached")


def stacked_clients_take_plain_steps(look: Look) -> Iterator[Problem]:
    """Stacked arithmetic is that of SGD on the task's own loss, of whole mini-batches."""
    if not look("clients.stack"):
        return
    optimiser, smoothing = look("clients.optimiser"), look("clients.label_smoothing")
    found = [f"clients.optimiser = {optimiser}"] * (optimiser != "sgd")
    found += [f"clients.label_smoothing = {smoothing:g}"] * (smoothing > 0)
    micro_batch = look("clients.micro_batch")
    found += [f"clients.micro_batch = {micro_batch}"] * (micro_batch is not None)
    if found:
        against = " and ".join(found)
        remedy = "set it false, and clients train one by one"
        reason = f"is for sgd on the plain loss of whole mini-batches, but {against}; {remedy}"
        yield Problem("clients.stack", look("clients.stack"), reason)


RULES: tuple[Callable[[Look], Iterator[Problem]], ...] = (
    either_steps_or_epochs,
    cohort_within_clients,
    networks_for_all,
    ray_settings_with_ray,
    code_that_hosts_can_import,
    hosts_when_pooled,
    gpu_shares_with_cuda,
    portable_bits_on_cpu,
    *(partial(setting_of_the_optimiser, name) for name in OPTIMISERS),
    *(partial(setting_of_the_schedule, name) for name in ("every", "falls", "factor")),
    falling_rate_has_its_rounds,
    falling_rate_has_a_factor,
    warmup_of_the_rate_ends,
    stacked_clients_take_plain_steps,
)


def violations(look: Look) -> Iterator[Problem]:
    """Violated rules, as far as the values they need are valid in themselves."""
    for rule in RULES:
        try:
            yield from list(rule(look))
        except Unclear:
            continue
