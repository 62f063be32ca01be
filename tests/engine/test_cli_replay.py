"""A step that fails: what the error says, what is kept of it, and how it is performed again."""

import pdb
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from actors.steps.orders import Failure, Order
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.methods.fedavg import FedAvg
from engine.commands.cli import cli
from engine.run.replay import ReplayError, read_failed_order, save_failed_order

RUN = ["run", "fedavg-digits", "--out", "here"]
RUN += [word for key in ("runner.kind=inline", "rounds=3", "mlflow.enabled=false") for word in ("--set", key)]
STEP = ["--round", "1", "--step", "train", "--client", "4"]

train = FedAvg.train


def failing(self, client):
    """`train`, but client 4 divides by zero in round 1."""
    if (client.spec.id, client.seed.round) == (4, 1):
        return 1 / 0
    return train(self, client)


failing.__client_side__ = True
failing.__name__ = "train"


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """The message of a run whose step failed; its folder is `here`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FedAvg, "train", failing)
    return CliRunner().invoke(cli, RUN)


def test_a_failed_step_is_told_with_all_that_finds_it_again(failed):
    assert failed.exit_code == 1
    said = failed.stderr
    assert "ZeroDivisionError: division by zero" in said
    assert "in method fedavg, step train, client 4, round 1, seed 0" in said
    assert "return 1 / 0" in said
    assert "tessera replay here --round 1 --step train --client 4 --pdb" in said
    # The traceback is the step's own; the engine's frames around it would only hide it.
    assert said.count("Traceback") == 1


def test_the_step_fails_again_where_it_failed(failed):
    again = CliRunner().invoke(cli, ["replay", "here", *STEP])
    assert again.exit_code == 1
    assert isinstance(again.exception, ZeroDivisionError)


def test_the_debugger_opens_where_the_step_raised(failed, monkeypatch):
    places = []
    monkeypatch.setattr(pdb, "post_mortem", lambda trace: places.append(last_line(trace)))
    CliRunner().invoke(cli, ["replay", "here", *STEP, "--pdb"])
    assert places == [("failing", {"client": 4, "round": 1})]


def last_line(trace):
    while trace.tb_next:
        trace = trace.tb_next
    client = trace.tb_frame.f_locals["client"]
    return trace.tb_frame.f_code.co_name, {"client": client.spec.id, "round": client.seed.round}


def test_a_mended_step_runs_through_with_what_it_had_received(failed, monkeypatch):
    monkeypatch.setattr(FedAvg, "train", train)
    again = CliRunner().invoke(cli, ["replay", "here", *STEP])
    assert again.exit_code == 0, again.output
    assert "step train of client 4 ran through this time" in again.output
    # Its memory came back too: the preset's 10 steps of round 0 stand in `position`.
    assert read_failed_order(Path("here"), 1, "train", 4).memory["position"] == 10


def test_a_step_that_did_not_fail_is_no_step_to_replay(failed):
    again = CliRunner().invoke(cli, ["replay", "here", "--round", "0", "--step", "train", "--client", "1"])
    assert again.exit_code == 2
    assert "there are kept: round-1-train-client-4" in again.stderr


def kept(folder, order):
    command = save_failed_order(folder, Failure(order.client, "any", order.step, order.seed, "Error", "text", order))
    return command, read_failed_order(folder, order.seed.round, order.step, order.client)


def test_an_order_comes_back_with_its_bits(tmp_path):
    shared = torch.arange(6.0)
    received = Payload.of(
        weights={"a": shared, "b": shared[2:].view(2, 2), "empty": torch.empty(0, 3)},
        examples={"n": 3, "share": 0.1},
        label_counts={"n": torch.tensor([1, 2])},
    )
    order = Order("train", 2, Seed(5, 3, "train", 2), received, {"position": 7, "m": torch.tensor(float("nan"))})
    command, back = kept(tmp_path, order)
    assert command.endswith("--round 3 --step train --client 2 --pdb")
    assert (back.step, back.client, back.seed) == (order.step, order.client, order.seed)
    assert {k: set(v) for k, v in back.received.parts.items()} == {k: set(v) for k, v in received.parts.items()}
    assert torch.equal(back.received.tensors("weights")["b"], torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    assert (back.received.number("examples", "n"), back.received.number("examples", "share")) == (3, 0.1)
    assert back.memory["position"] == 7
    assert bool(back.memory["m"].isnan())


def test_a_folder_with_a_blank_in_its_name_is_quoted(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    command, _ = kept(folder, Order("train", 0, Seed(0, 0, "train", 0), Payload.of(examples={"n": 1}), {}))
    assert f"'{folder}'" in command


def test_nothing_is_kept_of_a_step_of_which_nothing_is_known(tmp_path):
    assert save_failed_order(tmp_path, Failure(0, "any", "train", Seed(0), "Error", "text")) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_named(tmp_path, content):
    order = Order("train", 0, Seed(0, 0, "train", 0), Payload.of(examples={"n": 1}), {})
    kept(tmp_path, order)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(content)
    with pytest.raises(ReplayError, match=r"client-0\.safetensors is damaged"):
        read_failed_order(tmp_path, 0, "train", 0)


def test_what_is_kept_is_no_pickle(tmp_path):
    order = Order("train", 0, Seed(0, 0, "train", 0), Payload.of(weights={"w": torch.ones(2)}), {})
    kept(tmp_path, order)
    (path,) = tmp_path.rglob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["received/parts/weights/w"]
