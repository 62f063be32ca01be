"""The models of a run's folder: what is written, and that what is read again predicts as the run did."""

import json
from dataclasses import dataclass

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from algorithms.core.records import digest
from algorithms.core.scoring import score
from algorithms.core.task import Shard
from engine.commands.cli import cli
from engine.config import load as load_config
from engine.data.images.decode import blank_file
from engine.errors import ConfigError
from engine.models import load
from engine.planning.federation import Federation
from engine.store.folder import FolderError, RunFolder
from engine.store.models import ModelEntry, choose_entry

QUICK = ("runner.kind=inline", "mlflow.enabled=false", "rounds=1", "clients.steps=2", "partition.clients=3")


def settings(*overrides):
    return [word for override in (*QUICK, *overrides) for word in ("--set", override)]


def run(folder, preset, *overrides):
    result = CliRunner().invoke(cli, ["run", preset, *settings(*overrides), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "digits", "fedavg-digits")


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "personal", "fedavg-digits", "method.name=fedbn")


def accuracy_of(model, preset):
    """On the test set of a preset, as a run judges it."""
    data = Federation.gather(load_config(preset, QUICK)).dataset
    columns = {name: torch.from_numpy(values) for name, values in data.test.items()}
    shard = Shard(columns, torch.arange(len(data.test["label"])))
    return model.task.report(score(model.net, model.task, shard, torch.device("cpu")))


def test_the_model_that_is_read_again_has_the_figures_of_the_run(digits):
    result = json.loads((digits / "result.json").read_text())
    assert accuracy_of(load(digits), "fedavg-digits") == pytest.approx(result["figures"], abs=1e-12)


def test_model_json_says_all_that_using_the_model_takes(digits):
    facts = json.loads((digits / "model.json").read_text())
    assert facts["digest"] == json.loads((digits / "result.json").read_text())["digest"]
    assert (facts["method"], facts["rounds"], facts["seed"]) == ("fedavg", 1, 0)
    assert facts["form"] == "images of 1x8x8"
    assert facts["inputs"] == {"input": {"shape": [1, 8, 8], "dtype": "float32"}}
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["outputs"] == 10
    assert set(facts["task"]["values"]) >= {"mean", "std", "shape"}
    assert facts["columns"] == {"image": "image", "label": "class"}
    (entry,) = facts["models"]
    assert (entry["client"], entry["network"], entry["width"]) == (None, "small_cnn", 1.0)


def test_the_file_holds_the_global_model_of_the_last_round(digits):
    """FedAvg's state is the network's name and its entries: their digest is the run's."""

    @dataclass(frozen=True)
    class State:
        net: str
        model: dict[str, torch.Tensor]

    facts = json.loads((digits / "model.json").read_text())
    assert digest(State("small_cnn", load_file(digits / "model.safetensors"))) == facts["digest"]


def test_of_personal_models_there_is_one_file_a_client_each_with_its_own_normalisation(personal):
    assert not (personal / "model.safetensors").exists()
    names = sorted(path.name for path in (personal / "models").iterdir())
    assert names == [f"client-{client:04d}.safetensors" for client in range(3)]
    means = [load(personal, client).net.state_dict() for client in range(3)]
    norms = [next(value for name, value in state.items() if name.endswith("running_mean")) for state in means]
    assert not torch.equal(norms[0], norms[1])
    assert torch.equal(means[0]["head.weight"], means[1]["head.weight"])


@pytest.mark.parametrize("which", ["digits", "personal"])
def test_on_ray_the_models_have_the_bytes_of_the_run_in_this_process_and_predict(which, request, ray_cluster, tmp_path):
    here, client = request.getfixturevalue(which), None if which == "digits" else 2
    method = [] if which == "digits" else ["method.name=fedbn"]
    there = run(tmp_path / "ray", "fedavg-digits", *method, "runner.kind=ray", "runner.hosts=2")
    names = sorted(
        path.relative_to(here).as_posix() for path in here.rglob("*.safetensors") if "checkp" not in str(path)
    )
    assert names == (
        ["model.safetensors"] if which == "digits" else [f"models/client-000{k}.safetensors" for k in range(3)]
    )
    assert [(there / name).read_bytes() for name in names] == [(here / name).read_bytes() for name in names]
    rows = pa.table({"image": [{"bytes": blank_file(1, 8, 8)}]})
    assert load(there, client).predict(rows).equals(load(here, client).predict(rows))


def test_a_client_must_be_named_where_each_has_its_own_and_only_there(personal, digits):
    with pytest.raises(FolderError, match=r"which one is not said; name one by --client, 0 to 2"):
        load(personal)
    with pytest.raises(FolderError, match=r"client 7 has none; name one by --client, 0 to 2"):
        load(personal, 7)
    with pytest.raises(FolderError, match=r"one model for all clients, and none of client 1's own"):
        load(digits, 1)


def test_a_folder_without_a_model_is_refused_with_what_it_is_and_the_way_out(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "other").mkdir()
    with pytest.raises(FolderError, match=r"model\.json is missing: the run has not finished"):
        load(tmp_path)
    with pytest.raises(FolderError, match=r"gone is not there; name the folder of a finished run, as `tessera run`"):
        load(tmp_path / "gone")
    for none in ("other", "config.yaml"):
        with pytest.raises(FolderError, match=rf"{none} is no run's folder; name that of a finished run"):
            load(tmp_path / none)


@pytest.fixture
def copied(digits, tmp_path):
    """A folder with the model's files alone, to be damaged."""
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    return tmp_path


def test_a_model_is_used_from_its_two_files_alone(digits, copied):
    probe = load(digits).task.form.probe()
    assert torch.equal(load(copied)(probe), load(digits)(probe))


def test_tensors_of_another_run_are_refused(copied):
    state = load_file(copied / "model.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, copied / "model.safetensors")
    with pytest.raises(FolderError, match=r"model\.safetensors was changed or cut short: its checksum"):
        load(copied)


def change(folder, function):
    facts = json.loads((folder / "model.json").read_text())
    function(facts)
    (folder / "model.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: facts.pop("models"),
        lambda facts: facts.pop("task"),
        lambda facts: facts["models"][0].pop("sha256"),
        lambda facts: facts["task"]["values"].pop("mean"),
        lambda facts: facts["task"]["values"].update(shape=[1, 9, 9, 9]),
        lambda facts: facts["task"].update(name="nothing"),
        lambda facts: facts["models"][0].update(network="mlp"),
        lambda facts: facts.update(roles=None),
    ],
)
def test_a_damaged_description_is_refused_by_its_name(copied, damage):
    change(copied, damage)
    with pytest.raises(FolderError, match=r"model\.json is damaged"):
        load(copied)


def test_code_of_ones_own_is_imported_only_where_it_is_named(copied):
    change(copied, lambda facts: facts["models"][0].update(network="no_such_module_here:net"))
    with pytest.raises(ConfigError, match=r"names code of one's own; if you trust it, add --code no_such_module_here"):
        load(copied)


def test_a_run_that_goes_on_has_no_model_until_it_ends(tmp_path):
    folder = run(tmp_path / "run", "fedavg-digits")
    first = (folder / "model.safetensors").read_bytes()
    RunFolder(folder).reopen(1)
    assert not list(folder.glob("model*"))
    again = CliRunner().invoke(cli, ["resume", str(folder), "--set", "rounds=2"])
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "model.json").read_text())["rounds"] == 2
    assert (folder / "model.safetensors").read_bytes() != first


def test_choosing_among_the_models_of_one_client():
    entry = ModelEntry(4, "mlp", 1.0, "")
    assert choose_entry(RunFolder, [entry], 4) is entry
