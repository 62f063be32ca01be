"""The models of a run, into its folder: those of its last round, or of the best one where rounds were judged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.cohort.delivery import resolve_outcome
from actors.runner import Runner, StepRequest
from actors.steps.orders import StepError
from algorithms.core.contract import ClientSpec, Method
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.nets import NetworkError
from engine.config.own_code import is_own
from engine.models.description import describe, same_entries
from engine.planning.federation import Federation
from engine.run.context import RunContext
from engine.run.rounds import Rounds
from engine.store.checkpoint import Checkpoint
from engine.store.models import ModelEntry, write_description, write_tensors

log = logging.getLogger(__name__)

GIVE = "give_own"
"""The step that gives a client's own predictor away."""


def write_models(
    run: RunContext,
    runner: Runner,
    rounds: Rounds,
    best: Checkpoint[Any] | None,
    digest: str,
    versions: Mapping[str, str],
) -> None:
    """Write model.safetensors, or of a method with personal models one file a client, and then model.json.

    Args:
        best: of the round whose models are wanted, and whose memories clients then have; None for the last round.
    """
    state, round = (rounds.state, rounds.next - 1) if best is None else (best.state, best.done - 1)
    if best is not None:
        runner.restore(best.memories)
    method = rounds.method
    entries = list(_personal(run, runner, rounds, state)) if method.personal else [_global(run, method, state)]
    write_description(run.files, entries, describe(run.federation, round, digest, versions))


def model_facts(run: RunContext, rounds: Rounds) -> dict[str, str]:
    """A fact for the start of a run whose model will not be one that can be made again; {} for any other.

    Methods of Tessera's own all predict with networks by name.
    """
    method = rounds.method
    if method.personal or not is_own(run.config.method.name):
        return {}
    try:
        predictor = method.predictor(rounds.state)
    # A method of one's own may have nothing to predict with before its first round, and say so in any way.
    except Exception:
        return {}
    if method.kit.name_of(predictor) is not None:
        return {}
    words = f"predicts with a {type(predictor).__name__}, which is no network of the kit's and has no name"
    return {"model": f"the method {words}: the folder will hold its tensors, which only code of yours can use"}


def _global(run: RunContext, method: Method[Any], state: Any) -> ModelEntry:
    predictor = method.predictor(state)
    name, width = method.kit.name_of(predictor) or (None, 1.0)
    return write_tensors(run.files, snapshot(predictor), None, name, width, _foundation(run, name))


def _personal(run: RunContext, runner: Runner, rounds: Rounds, state: Any) -> Iterator[ModelEntry]:
    """Each client's own model as it comes; one whose step fails has none, and the others stay."""
    setup = run.federation.setup
    seed = Seed(setup.seed).at(round=run.config.rounds, phase="server")
    everyone = tuple(client.id for client in setup.clients)
    request = StepRequest(GIVE, everyone, rounds.method.own_message(state), seed)
    for outcome in runner.run(request):
        try:
            given = resolve_outcome(runner, request, outcome, run.config.failures.policy(), rounds.book)
        except StepError as error:
            log.warning("client %d has no model in %s: %s", outcome.client, run.folder, error.failure.error)
            continue
        if given is not None and given.payload is not None:
            model = given.payload.tensors("model")
            name, width = _name_of(run.federation, setup.client(given.client, seed), model)
            yield write_tensors(run.files, model, given.client, name, width, _foundation(run, name))


def _foundation(run: RunContext, network: str | None) -> str:
    return run.federation.setup.task.foundation(network) if network else ""


def _name_of(federation: Federation, client: ClientSpec, state: Mapping[str, Tensor]) -> tuple[str | None, float]:
    """The network that a client's state is of; its own, of its width or whole, as far as it fits."""
    for width in _widths(client):
        try:
            with torch.random.fork_rng(devices=[]):
                net = federation.setup.task.network(client.net, width)
        except NetworkError:
            continue
        if same_entries(net, state):
            return client.net, width
    return None, 1.0


def _widths(client: ClientSpec) -> Sequence[float]:
    return (client.width, 1.0) if client.width != 1.0 else (1.0,)
