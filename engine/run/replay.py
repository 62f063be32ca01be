"""A failed step, kept with all that it depended on, and performed again in this process."""

from __future__ import annotations

import json
import pdb
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from actors.steps.orders import Failure, Order
from actors.steps.stacking import single_client_loop
from actors.steps.worker import Worker
from algorithms.core.contract import Reply
from algorithms.core.payload import Payload
from algorithms.core.records import flatten, rebuild
from algorithms.core.seeds import Seed
from engine.config import reading, resolve
from engine.config.anchoring import with_paths_from
from engine.config.own_code import refuse_unnamed
from engine.errors import UserError
from engine.planning.federation import Federation
from engine.store.folder import RunFolder, settle

_HEADER = "tessera"


class ReplayError(UserError):
    """A step that cannot be performed again; the message says which can."""


def save_failed_order(folder: Path, failure: Failure) -> str:
    """Keep what a failed step was given; the command that performs it again, or "" where nothing is known of it."""
    order = failure.order
    if order is None:
        return ""
    path = _path(folder, order.seed.round, order.step, order.client)
    path.parent.mkdir(exist_ok=True)
    tensors, tree = flatten(order)
    # safetensors refuses tensors that share memory, as the received weights of a network may.
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.part")
    save_file(apart, temporary, metadata={_HEADER: json.dumps({"order": tree, "error": failure.error})})
    settle(temporary, path)
    where = shlex.quote(str(folder))
    return f"tessera replay {where} --round {order.seed.round} --step {order.step} --client {order.client} --pdb"


def _path(folder: Path, round: int, step: str, client: int) -> Path:
    return folder / "failures" / f"round-{round}-{step}-client-{client}.safetensors"


def read_failed_order(folder: Path, round: int, step: str, client: int) -> Order:
    """Read an order that `save_failed_order` stored.

    Raises:
        ReplayError: there is no such file, or it is damaged.
    """
    if not step.isidentifier():
        raise ReplayError(f"{step!r} is no name of a step")
    path = _path(folder, round, step, client)
    if not path.exists():
        kept = sorted(p.stem for p in folder.glob("failures/*.safetensors"))
        raise ReplayError(f"{path} does not exist; of this run there are kept: {', '.join(kept) or 'no failed steps'}")
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads(file.metadata()[_HEADER])["order"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _order(tree, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ReplayError(f"{path} is damaged: {error!r}") from error


def _order(tree: dict[str, Any], tensors: dict[str, Any]) -> Order:
    return Order(
        step=tree["step"],
        client=tree["client"],
        seed=Seed(**tree["seed"]),
        received=Payload(rebuild(dict[str, dict[str, Any]], tree["received"]["parts"], tensors)),
        memory=rebuild(dict[str, Any], tree["memory"], tensors),
    )


def replay(
    folder: Path, round: int, step: str, client: int, *, debug: bool = False, code: Collection[str] = ()
) -> Reply:
    """Perform a failed step of a run again, from the run's own configuration and data.

    Args:
        code: modules of one's own that may be imported where the folder names them; see `engine.config.own_code`.

    What the step raises is raised here; with `debug`, Python's debugger is opened first, where it was raised.
    """
    order = read_failed_order(folder, round, step, client)
    start = RunFolder(folder).start_folder()
    tree = with_paths_from(reading.read(str(folder / "config.yaml")), start)
    refuse_unnamed(tree, code, start)  # before a method of one's own is looked for, which imports it
    config = resolve(tree)
    federation = Federation.gather(config)
    undeclared = [kind for kind in order.received.parts if kind not in federation.needs.kinds]
    if undeclared:
        raise ReplayError(
            f"the failed step of {folder} was given {', '.join(undeclared)}, which {config.method.name} does not send: "
            "its file, or the run's configuration, was changed after the run"
        )
    worker = Worker(federation.setup, federation.shards, single_client_loop(federation.setup))
    try:
        return worker.reply(order)
    except Exception as error:
        if debug:
            pdb.post_mortem(error.__traceback__)
        raise
