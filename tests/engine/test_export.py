"""`tessera export`: other tools give the answers of the network that was exported."""

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from algorithms.nets import build
from algorithms.nets.registry import own_names
from engine.commands.cli import cli
from engine.data.questions import Reading
from engine.models.exporting import KINDS, ExportError, export, own_state
from engine.models.loading import LoadedModel
from tests.algorithms.support_tasks import CASES

OWN = """
from torch import nn


class Tied(nn.Module):
    def __init__(self, form, outputs):
        super().__init__()
        self.embedding = nn.Embedding(form.vocabulary, 8)
        self.last = nn.Linear(8, outputs, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, ids):
        return self.last(self.embedding(ids))


class Plain(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.first, self.final = nn.Linear(64, 5), nn.Linear(5, classes)

    def forward(self, images):
        return self.final(self.first(images.flatten(1)).relu())
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, by its name."""
    (tmp_path / "nets_to_export.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "nets_to_export"
    sys.modules.pop("nets_to_export", None)


def model_of(task, net=None, width=1.0):
    """A network of random weights, as `load` gives one."""
    case = CASES[task]
    net = net or case.net
    torch.manual_seed(5)
    network = build(net, case.prepared.task.form, case.prepared.task.outputs, width).eval()
    return LoadedModel(network, case.prepared.task, net, width, None, Reading({}, {}, None), {})


def inputs_of(model, count):
    probe = model.task.form.probe(count)
    return {"input": probe} if isinstance(probe, torch.Tensor) else probe


@pytest.mark.parametrize("task", ["images", "modalities", "language"])
def test_onnx_gives_the_answers_of_the_network_for_any_number_of_examples(task, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = model_of(task)
    export(model, "onnx", tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [given.name for given in session.get_inputs()] == list(inputs_of(model, 2))
    for count in (1, 5):
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs_of(model, count).items()})
        np.testing.assert_allclose(found, model(model.task.form.probe(count)).numpy(), atol=1e-5)


@pytest.mark.parametrize("task", sorted(CASES))
def test_torchscript_gives_the_answers_of_the_network(task, tmp_path):
    model = model_of(task)
    export(model, "torchscript", tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    with torch.no_grad():
        found = loaded(*inputs_of(model, 3).values())
    torch.testing.assert_close(found, model(model.task.form.probe(3)), atol=1e-6, rtol=0)


def test_a_narrow_network_is_exported_at_its_width(tmp_path):
    model = model_of("images", "small_cnn", 0.5)
    export(model, "state_dict", tmp_path / "model.pt")
    again = build("small_cnn", model.task.form, model.task.outputs, 0.5)
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    probe = model.task.form.probe(2)
    assert torch.equal(again.eval()(probe), model(probe))


@pytest.mark.parametrize("kind", ["safetensors", "state_dict"])
def test_a_network_of_ones_own_takes_its_tensors_by_the_names_of_its_code(kind, own, tmp_path):
    model = model_of("images", f"{own}:Plain")
    export(model, kind, tmp_path / "model")
    read = load_file if kind == "safetensors" else lambda path: torch.load(path, weights_only=True)
    state = read(tmp_path / "model")
    assert sorted(state) == ["final.bias", "final.weight", "first.bias", "first.weight"]
    plain = sys.modules[own].Plain((1, 8, 8), model.task.outputs)
    plain.load_state_dict(state)
    probe = model.task.form.probe(2)
    torch.testing.assert_close(plain(probe), model(probe))


def test_tied_tensors_are_there_under_each_of_their_names(own):
    model = model_of("language", f"{own}:Tied")
    assert list(model.net.state_dict()) == ["embedding.weight"]
    state = own_state(model)
    assert sorted(state) == ["embedding.weight", "last.weight"]
    assert torch.equal(state["embedding.weight"], state["last.weight"])
    plain = sys.modules[own].Tied(model.task.form, model.task.outputs)
    plain.load_state_dict(state)
    probe = model.task.form.probe(2)
    assert torch.equal(plain(probe), model(probe))


def test_names_of_ones_own_code_lead_to_those_of_the_states(own):
    case = CASES["images"].prepared.task
    names = own_names(f"{own}:Plain", case.form, case.outputs)
    assert names == {
        "first.weight": "body.first.weight",
        "first.bias": "body.first.bias",
        "final.weight": "head.weight",
        "final.bias": "head.bias",
    }


class Stubborn(nn.Module):
    """Runs, but no exporter can follow it."""

    def forward(self, images):
        return images.flatten(1)[:, : 2 + int(np.random.default_rng(0).integers(1))] * float(images.sum().item())


def test_a_network_that_cannot_be_exported_is_refused_in_a_sentence_and_leaves_no_file(tmp_path):
    model = model_of("images")
    stubborn = LoadedModel(Stubborn(), model.task, "mine:Stubborn", 1.0, None, model.reading, {})
    with pytest.raises(ExportError, match=r"mine:Stubborn cannot be written as ONNX: .*; safetensors and state_dict"):
        export(stubborn, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_onnx_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ExportError, match=r"ONNX needs the packages onnx and onnxscript: pip install 'tessera-fl\[onnx\]'"
    ):
        export(model_of("images"), "onnx", tmp_path / "model.onnx")


def test_the_command_names_the_file_by_the_run_and_writes_over_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("runner.kind=inline", "mlflow.enabled=false", "rounds=1", "clients.steps=1", "partition.clients=2")
    words = [word for setting in settings for word in ("--set", setting)]
    assert CliRunner().invoke(cli, ["run", "fedavg-digits", *words, "--out", "first"]).exit_code == 0
    done = CliRunner().invoke(cli, ["export", "first", "--to", "state_dict"])
    assert (done.exit_code, done.output) == (0, "small_cnn as state_dict: first.state_dict.pt\n")
    again = CliRunner().invoke(cli, ["export", "first", "--to", "state_dict"])
    assert again.exit_code == 2
    assert "first.state_dict.pt is there already, and nothing is written over it" in again.output


def test_the_command_offers_every_kind():
    (kind,) = [parameter for parameter in cli.commands["export"].params if parameter.name == "kind"]
    assert list(kind.type.choices) == list(KINDS)
