"""Weights that a run starts from: a file, the folder of a run, or torchvision's own."""

import hashlib
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from actors.runner import InlineRunner
from actors.steps.worker import Worker
from algorithms.core.contract import ClientSpec
from algorithms.core.states import norm_entries
from algorithms.nets import build, own_names
from algorithms.nets.forms import Images
from algorithms.nets.vision import torchvision
from algorithms.tasks.images import ImageTask
from engine.commands.cli import cli
from engine.config import load
from engine.errors import ConfigError
from engine.planning import weights as module
from engine.planning.federation import Federation
from engine.planning.weights import starting_weights
from engine.run.launch import launch
from engine.store.folder import RunFolder
from tests.support import tiny_setup, tiny_shards

DIGITS = Images((1, 8, 8))
QUICK = ("runner.kind=inline", "mlflow.enabled=false", "rounds=1", "clients.steps=2", "partition.clients=3")


def task_of(shape=(1, 8, 8), classes=10):
    channels = shape[0]
    return ImageTask(tuple(map(str, range(classes))), shape, (0.5,) * channels, (0.5,) * channels)


def fresh(net, form=DIGITS, outputs=10, seed=9):
    torch.manual_seed(seed)
    return build(net, form, outputs)


def starts(source, *nets, task=None):
    return starting_weights(source, [ClientSpec(k, net) for k, net in enumerate(nets)], task or task_of())


def run(folder, *overrides):
    words = [word for override in (*QUICK, *overrides) for word in ("--set", override)]
    return CliRunner().invoke(cli, ["run", "fedavg-digits", *words, "--out", str(folder)])


def test_a_run_whose_rate_is_next_to_nothing_ends_with_what_it_started_from(tmp_path):
    state = fresh("mlp").state_dict()
    save_file(state, tmp_path / "start.safetensors")
    still = ("clients.net=mlp", "clients.lr=1.0e-30", f"clients.weights={tmp_path / 'start.safetensors'}")
    assert run(tmp_path / "one", *still).exit_code == 0
    ended = load_file(tmp_path / "one" / "model.safetensors")
    assert ended.keys() == state.keys()
    assert all(torch.equal(ended[name], state[name]) for name in state)


def test_a_run_goes_on_from_where_another_one_ended(tmp_path):
    assert run(tmp_path / "one").exit_code == 0
    config = load("fedavg-digits", (*QUICK, f"clients.weights={tmp_path / 'one'}"))
    found = Federation.gather(config).setup.starts["small_cnn"]
    ended = load_file(tmp_path / "one" / "model.safetensors")
    assert found.keys() == ended.keys()
    assert all(torch.equal(found[name], ended[name]) for name in found)


def interrupted_run(folder, weights):
    """The folder of a run from such weights that was stopped after its first round."""

    class Stopper:
        def __getattr__(self, name):
            return lambda *_: None

        def round(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(load("fedavg-digits", (*QUICK, "rounds=2", f"clients.weights={weights}")), "", folder, Stopper())
    return folder


def test_a_run_does_not_go_on_from_weights_that_were_changed_meanwhile(tmp_path):
    file = tmp_path / "start.safetensors"
    save_file(fresh("small_cnn").state_dict(), file)
    folder, first = interrupted_run(tmp_path / "run", file), file.read_bytes()
    save_file(fresh("small_cnn", seed=10).state_dict(), file)
    refused = CliRunner().invoke(cli, ["resume", str(folder)])
    assert refused.exit_code == 2
    assert f"clients.weights = {file}: its tensors had the SHA-256 {RunFolder(folder).weights()} when" in refused.output
    file.write_bytes(first)
    assert CliRunner().invoke(cli, ["resume", str(folder)]).exit_code == 0


def test_without_weights_nothing_is_given():
    assert starts(None, "mlp", "small_cnn") == {}


def test_clients_themselves_start_from_them_where_a_part_never_travels():
    """A client of FedBN that was never asked has the normalisation that the run started from."""
    net = fresh("small_cnn", outputs=3)
    with torch.no_grad():
        for name in norm_entries(net):
            net.state_dict()[name].fill_(3)
    setup = replace(tiny_setup("fedbn", nets=("small_cnn",)), starts={"small_cnn": net.state_dict()})
    worker = Worker(setup, tiny_shards(6))
    assert all(bool((worker._method.kit.initial("small_cnn")[name] == 3).all()) for name in norm_entries(net))
    assert InlineRunner(setup, tiny_shards(6))


def test_names_of_ones_own_code_are_taken_as_well(tmp_path, monkeypatch):
    (tmp_path / "nets_to_start.py").write_text(
        "from torch import nn\n\n\ndef make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plain = __import__("nets_to_start").make((1, 8, 8), 10)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    found = starts(str(tmp_path / "plain.safetensors"), "nets_to_start:make")["nets_to_start:make"]
    assert torch.equal(found["head.weight"], plain[3].weight)
    assert torch.equal(found["body.1.bias"], plain[1].bias)
    sys.modules.pop("nets_to_start")


def refusal(source, *nets, task=None):
    with pytest.raises(ConfigError) as error:
        starts(source, *nets, task=task)
    (problem,) = error.value.problems
    assert problem.place == "clients.weights"
    return problem.reason


def test_all_names_and_shapes_that_differ_are_told_together(tmp_path):
    state = fresh("mlp").state_dict()
    first, *_, last = list(state)
    state[first] = torch.zeros(2, 3)
    del state[last]
    state["odd"] = torch.zeros(1)
    save_file(state, tmp_path / "other.safetensors")
    needed = tuple(fresh("mlp").state_dict()[first].shape)
    assert refusal(str(tmp_path / "other.safetensors"), "mlp") == (
        f"does not fit the network mlp for images of 1x8x8 and 10 outputs: {last} is missing; "
        f"{first} is (2, 3) where {needed} is needed; odd is none of its tensors"
    )


def test_tensors_that_are_no_numbers_are_refused(tmp_path):
    state = fresh("linear").state_dict()
    name = next(iter(state))
    state[name][0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    assert refusal(str(tmp_path / "nan.safetensors"), "linear").endswith(f": {name} holds NaN or infinity")


def test_clients_of_several_networks_have_no_common_start(tmp_path):
    assert "for one network that all clients share, and they have mlp, small_cnn" in refusal("x", "small_cnn", "mlp")


def test_a_file_that_is_missing_or_none_is_refused(tmp_path):
    assert "there is no file" in refusal(str(tmp_path / "gone.safetensors"), "mlp")
    assert "model.safetensors; name a .safetensors file" in refusal(str(tmp_path), "mlp")
    (tmp_path / "cut.safetensors").write_bytes(b"\x09\x00")
    assert "cannot be read" in refusal(str(tmp_path / "cut.safetensors"), "mlp")


VISION = "torchvision:squeezenet1_1"
RESNET = "torchvision:resnet18"


def pretrained(name, classes=1000):
    """What torchvision would fetch: tensors by the names of its own code."""
    form = Images((3, 32, 32))
    ours = fresh(name, form, classes).state_dict()
    return {own: ours[name] for own, name in own_names(name, form, classes).items()}


def test_of_a_pretrained_classifier_of_other_classes_the_last_layer_begins_anew(monkeypatch):
    given = pretrained(RESNET)
    monkeypatch.setattr(module, "trained_state", lambda name: {"resnet18": given}[name])
    found = starts(RESNET, RESNET, task=task_of((3, 32, 32), 4))[RESNET]
    needed = fresh(RESNET, Images((3, 32, 32)), 4).state_dict()
    assert needed.keys() - found.keys() == {"head.weight", "head.bias"}
    assert torch.equal(found["body.conv1.weight"], given["conv1.weight"])


def test_pretrained_weights_of_another_network_or_of_other_channels_are_refused(monkeypatch):
    given = pretrained(RESNET)
    monkeypatch.setattr(module, "trained_state", lambda name: given)
    assert "body.conv1.weight is (64, 3, 7, 7) where (64, 1, 7, 7) is needed" in refusal(
        RESNET, RESNET, task=task_of((1, 32, 32), 4)
    )
    assert "is missing" in refusal(RESNET, "small_cnn")


SHUFFLE = "shufflenet_v2_x0_5"
"""A small one of torchvision's whose last layer is a linear one."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A stand-in for torchvision's server: a folder that loopback serves, its address, and the files asked for."""
    asked, folder = [], tmp_path / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_): ...

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()
        thread.join()


def offer(server, monkeypatch, checksum=None):
    """Pre-trained weights on the server, under a name with their checksum, at the address that torchvision asks."""
    folder, url, _ = server
    state = pretrained(f"torchvision:{SHUFFLE}")
    torch.save(state, folder / "weights.pth")
    begins = (checksum or hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest())[:8]
    file = (folder / "weights.pth").rename(folder / f"{SHUFFLE}-{begins}.pth")
    known = torchvision().models.get_model_weights(SHUFFLE).DEFAULT
    monkeypatch.setattr(known.value, "url", f"{url}/{file.name}")
    return state, file


def test_pretrained_weights_are_fetched_once_checked_and_loaded(server, monkeypatch):
    given, file = offer(server, monkeypatch)
    name = f"torchvision:{SHUFFLE}"
    first, again = (starts(name, name, task=task_of((3, 32, 32), 4))[name] for _ in range(2))
    kept = {own: ours for own, ours in own_names(name, Images((3, 32, 32)), 4).items() if ours in first}
    assert len(kept) == len(given) - 2
    for own, ours in kept.items():
        assert torch.equal(first[ours], given[own])
        assert torch.equal(again[ours], given[own])
    assert server[2] == [f"/{file.name}"]


def test_fetched_weights_whose_checksum_is_not_the_one_in_their_name_are_refused_and_not_kept(server, monkeypatch):
    _, file = offer(server, monkeypatch, checksum="0123abcd")
    for _ in range(2):
        assert 'invalid hash value (expected "0123abcd"' in refusal(f"torchvision:{SHUFFLE}", f"torchvision:{SHUFFLE}")
    assert server[2] == [f"/{file.name}"] * 2


def test_weights_that_the_server_does_not_have_are_refused(server, monkeypatch):
    _, file = offer(server, monkeypatch)
    file.unlink()
    reason = refusal(f"torchvision:{SHUFFLE}", f"torchvision:{SHUFFLE}")
    assert reason == "cannot be read (HTTP Error 404: File not found)"


def test_without_a_network_that_is_said(monkeypatch):
    def unreachable(name):
        raise OSError("no route to host")

    monkeypatch.setattr(module, "trained_state", unreachable)
    assert refusal(RESNET, "small_cnn") == "cannot be read (no route to host)"
    monkeypatch.undo()
    assert "torchvision has no classifier 'resnet9000'" in refusal("torchvision:resnet9000", "small_cnn")
