"""Checks once the data is loaded, all of them before anything starts."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from collections.abc import Iterator
from typing import get_args, get_type_hints

import torch

from actors.steps.orders import find_method, method_names
from algorithms.core.task import LABEL, Trait
from clusters.grants import free_memory
from engine.config import RunConfig
from engine.errors import ConfigError, Problem, nearest
from engine.planning.federation import Federation
from engine.planning.probing import network_problems
from engine.planning.report import too_large


def check(federation: Federation, free: int | None = None) -> None:
    """Hold a configuration against its data, its partition and this machine.

    Args:
        free: bytes of memory that the driver may take; what is free now where None.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [*_machine(federation.config), *_clients(federation.config, len(federation.partition.rows))]
    wrong_networks = list(network_problems(federation))
    problems += [*wrong_networks, *_method(federation), *_rounds(federation), *_forbidden(federation)]
    problems += [*_missing_public_data(federation), *_labels(federation), *_stop(federation)]
    if not wrong_networks:
        problems += too_large(federation, free_memory() if free is None else free)
    if problems:
        raise ConfigError(problems)


def _clients(config: RunConfig, clients: int) -> Iterator[Problem]:
    """Numbers of clients, where only the data says how many there are."""
    cohort, nets = config.clients.cohort, config.clients.net
    if cohort is not None and cohort > clients:
        yield Problem(
            "clients.cohort", cohort, f"must be at most the {clients} clients of the partition, or null for all"
        )
    if isinstance(nets, dict) and sum(nets.values()) != clients:
        reason = f"is for {sum(nets.values())} clients; the counts must sum to the {clients} of the partition"
        yield Problem("clients.net", nets, reason)


def _machine(config: RunConfig) -> Iterator[Problem]:
    if config.runner.kind == "ray" and platform.system() == "Windows":
        reason = "runs on Ray need Linux or macOS; set runner.kind: inline, or work in WSL"
        yield Problem("runner.kind", "ray", reason)
    elif config.runner.kind == "ray" and importlib.util.find_spec("ray") is None:
        remedy = "install ray[default,data,train], or set runner.kind: inline"
        yield Problem("runner.kind", "ray", f"Ray is not installed; {remedy}")
    if config.runner.device == "cuda" and not torch.cuda.is_available():
        yield Problem("runner.device", "cuda", "torch finds no GPU on this machine; set runner.device: cpu")


def _method(federation: Federation) -> Iterator[Problem]:
    """The method's own refusals, and kinds that it sends without a sentence on them."""
    name, needs = federation.config.method.name, federation.needs
    if needs.lacking:
        yield Problem("method.name", name, _wrong_task(federation, needs.lacking))
    for reason in needs.refusals:
        yield Problem("method.name", name, reason)
    if federation.config.clients.stack and needs.trained_alone:
        reason = f"cannot serve clients of {name}: {needs.trained_alone}; set it false, and clients train one by one"
        yield Problem("clients.stack", federation.config.clients.stack, reason)
    for kind, sentence in needs.kinds.items():
        if not sentence:
            reason = f"sends {kind} and does not say what that tells about a client: put a sentence into own_kinds"
            yield Problem("method.name", name, reason)


def _rounds(federation: Federation) -> Iterator[Problem]:
    """Report rounds that a method needs and the run does not have."""
    least, rounds = federation.needs.least_rounds, federation.config.rounds
    if least is not None and least.rounds > rounds:
        value = getattr(federation.config.method.settings, least.setting)
        reason = (
            f"needs {least.rounds} rounds, and there are {rounds}: lower it, or set rounds to {least.rounds} or more"
        )
        yield Problem(f"method.{least.setting}", value, reason)


def _forbidden(federation: Federation) -> Iterator[Problem]:
    """The kinds that must not leave a client are kinds that there are, and the method sends none of them."""
    forbid, needs, name = federation.config.privacy.forbid, federation.needs, federation.config.method.name
    known = ", ".join(needs.known_kinds)
    for kind in (kind for kind in forbid if kind not in needs.known_kinds):
        reason = f"{kind} is no kind of content; {nearest(kind, needs.known_kinds)}there are {known}"
        yield Problem("privacy.forbid", kind, reason)
    sent = [kind for kind in forbid if kind in needs.up]
    if sent:
        reason = f"{name} sends {', '.join(sorted(needs.up))}; allow these, or choose another method or settings"
        yield Problem("privacy.forbid", sent, reason)


def _wrong_task(federation: Federation, missing: frozenset[Trait]) -> str:
    """The reason that a method does not serve the task, and the methods that do."""
    title, traits = federation.setup.task.title, federation.setup.task.traits
    serving = [words for name in method_names() if (words := _methods_serving(name, traits))]
    needed = " and ".join(sorted(missing))
    return f"needs a task with {needed}, which {title} is not; {title} is served by {', '.join(serving)}"


def _methods_serving(name: str, traits: frozenset[Trait]) -> str:
    """A method's name where it serves a task of such traits, with the setting that it then needs; "" where none does.

    Of settings only those are tried that are choices among words, or true and false, one at a time.
    """
    method = find_method(name)
    if method.requires(method.Config()) <= traits:
        return name
    hints = get_type_hints(method.Config)
    for field in dataclasses.fields(method.Config):
        for choice in (False, True) if hints[field.name] is bool else get_args(hints[field.name]):
            changed = {field.name: choice} if isinstance(choice, str | bool) else {}
            if method.requires(method.Config(**changed)) <= traits:
                return f"{name} with {field.name}: {str(choice).lower() if isinstance(choice, bool) else choice}"
    return ""


def _labels(federation: Federation) -> Iterator[Problem]:
    """Smoothing takes from one class what it gives to all."""
    share = federation.config.clients.label_smoothing
    if share and not federation.setup.task.classes:
        reason = "is for tasks with classes, and this one has none; leave it 0"
        yield Problem("clients.label_smoothing", share, reason)


def _stop(federation: Federation) -> Iterator[Problem]:
    """A run that may end early is judged by a figure that its task has, on one row at least."""
    stop, figures = federation.config.stop, [figure.name for figure in federation.setup.task.figures]
    if stop is None:
        return
    if stop.metric is not None and stop.metric not in figures:
        title = federation.setup.task.title
        reason = f"{title} has no such figure; {nearest(stop.metric, figures)}it has {', '.join(figures)}"
        yield Problem("stop.metric", stop.metric, reason)
    if not any(map(len, federation.validation_rows)):
        largest = max(map(len, federation.partition.rows))
        reason = f"leaves no client a validation row, of {largest} rows at most; raise it to {1 / largest:.2g} or more"
        yield Problem("stop.share", stop.share, reason)


def _missing_public_data(federation: Federation) -> Iterator[Problem]:
    """Examples that the method needs the server to own."""
    name, public = federation.config.method.name, federation.config.data.public
    needed, found = federation.needs.public, federation.dataset.public
    if needed != "nothing" and found is None:
        reason = f"{name} needs {needed} that the server owns: give a share of the training rows, as 0.1"
        yield Problem("data.public", public, f"{reason}{', or a folder' if needed == 'examples' else ''}")
    elif needed == "labelled examples" and found is not None and LABEL not in found:
        reason = f"{name} needs their labels, which are not looked at in a folder; give a share of the training rows"
        yield Problem("data.public", public, reason)
