"""The program as a library: what a call gives, what it raises, and how a script and a notebook hear of a run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pyarrow as pa
import pytest
import torch
import yaml
from torch import nn

import engine as tessera
from actors.steps.shards import ShardArrays
from algorithms.methods.fedavg import FedAvg
from engine.api.settings import overrides_of
from engine.config import load, resolve, to_tree
from engine.planning.federation import Federation
from engine.store.folder import read

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "clients": {"steps": 2, "net": "mlp"},
    "partition": {"clients": 3},
    "data": {"limit": 200},
    "runner": {"kind": "inline"},
    "mlflow": {"enabled": False},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds of three clients, evaluated after the second alone."""
    folder = tmp_path_factory.mktemp("api") / "run"
    return tessera.run("fedavg-digits", rounds=2, evaluate={"every": 2}, out=folder, progress=False, **SMALL)


class HalfAvg(FedAvg):
    """FedAvg, by another name."""

    paper = "none: an example"


def net(shape, classes):
    """Linear, of flat images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


# --- The import ---------------------------------------------------------------------------------------------------


def test_the_import_loads_nothing_of_what_calls_need():
    code = "import sys, engine; print(sorted({'torch', 'ray', 'mlflow', 'pydantic', 'engine.api'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", tessera.__all__)
def test_every_name_is_that_of_the_library_whatever_was_imported_before(name):
    import engine.api
    import engine.compare.table
    import engine.partition.rules
    import engine.run.launch

    assert callable(getattr(tessera, name))
    assert name in dir(tessera)
    given, own = getattr(tessera, name), getattr(engine.api, name)
    if not inspect.isclass(own):
        assert (inspect.signature(given), inspect.getdoc(given)) == (inspect.signature(own), inspect.getdoc(own))


def test_rooms_of_the_same_names_stay_what_they_are():

    assert tessera.run.launch is sys.modules["engine.run.launch"]
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = tessera.rnu


# --- Keywords -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"rounds": 4, "clients": {"lr": 0.1}}, ("rounds=4", "clients.lr=0.1")),
        ({"clients": {"schedule": {"name": "cosine"}}}, ('clients.schedule.name="cosine"',)),
        ({"clients": {"net": {"mlp": 5, "cnn2": 5}}}, ('clients.net={"mlp": 5, "cnn2": 5}',)),
        ({"method": {"warmup": 3}}, ("method.warmup=3",)),
        ({"method": {"name": "fedprox", "mu": 0.1}}, ('method={"name": "fedprox", "mu": 0.1}',)),
        ({"methods": {"near": {"mu": 0.1}}}, ("methods.near.mu=0.1",)),
        ({"partition": {"path": Path("a/b")}}, ('partition.path="a/b"',)),
        ({"clients": {"width": (1.0, 0.5)}, "seed": pa.scalar(3).as_py()}, ("clients.width=[1.0, 0.5]", "seed=3")),
        ({"data": {"columns": {"image": "größe.x"}}}, ('data.columns={"image": "größe.x"}',)),
        ({"clients": {}}, ()),
    ],
)
def test_a_keyword_changes_the_keys_it_has_and_another_method_takes_the_place_of_the_whole(keys, options):
    assert overrides_of(keys, {"method": {"name": "mosaic", "warmup": 8}}) == options


def test_a_preset_a_file_and_a_mapping_give_the_same_run(run, tmp_path):
    small = ["clients.steps=2", "clients.net=mlp", "partition.clients=3", "data.limit=200"]
    tree = to_tree(load("fedavg-digits", [*small, "rounds=2", "evaluate.every=2", "runner={}", "mlflow.enabled=false"]))
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    digests = {tessera.run(given, progress=False).result["digest"] for given in (tree, Path("mine.yaml"))}
    assert digests == {run.result["digest"]}
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine-seed-0", "python-seed-0"]


def test_a_class_and_a_function_are_named_by_their_module():
    runs = [
        tessera.run(
            "fedavg-digits",
            rounds=1,
            method={"name": method},
            out=f"own-{number}",
            progress=False,
            **{**SMALL, "clients": {"steps": 2, "net": network}},
        )
        for number, (method, network) in enumerate([(HalfAvg, net), ("fedavg", f"{__name__}:net")])
    ]
    assert runs[0].config["method"]["name"] == f"{__name__}:HalfAvg"
    assert runs[0].config["clients"]["net"] == f"{__name__}:net"
    assert runs[0].result["digest"] == runs[1].result["digest"]


def test_the_model_of_a_run_has_the_accuracy_that_the_result_says(run):
    model = run.model()
    data = Federation.gather(resolve(dict(run.config))).dataset
    inputs, labels = model.task.batch(ShardArrays.whole(data.test), torch.arange(len(data.test_labels)))
    hits = (model(inputs).argmax(dim=1) == labels).sum().item()
    assert hits / len(labels) == pytest.approx(run.result["accuracy"])


def test_the_model_of_ones_own_network_needs_its_module_to_be_named_where_the_folder_is_opened():
    keys = {**SMALL, "clients": {"steps": 1, "net": net}}
    own = tessera.run("fedavg-digits", rounds=1, out="net", progress=False, **keys)
    assert own.model().network == f"{__name__}:net"
    with pytest.raises(tessera.UserError, match=f"--code {__name__}"):
        tessera.open("net").model()
    assert tessera.open("net", code=[__name__]).model().network == f"{__name__}:net"


def test_what_cannot_be_found_by_name_is_refused_and_so_is_what_is_no_value():
    class Inner(FedAvg):
        """Defined in a function."""

    with pytest.raises(tessera.ConfigError) as error:
        tessera.run("fedavg-digits", method={"name": Inner}, clients={"lr": object})
    with pytest.raises(tessera.ConfigError, match=r"clients.lr = .*: is a object; give text, a number"):
        tessera.run("fedavg-digits", clients={"lr": object()})
    assert "method.name" in str(error.value)
    assert "define it at the top of a module" in str(error.value)


# --- Mistakes -----------------------------------------------------------------------------------------------------


def test_all_mistakes_are_one_exception_without_our_frames():
    with pytest.raises(tessera.ConfigError) as error:
        tessera.run("fedavg-digits", rounds=-2, clients={"lr": -1, "steps": None})
    assert [problem.place for problem in error.value.problems] == ["clients.lr", "rounds", "clients"]
    frames = [entry.path.name for entry in error.traceback]
    assert set(frames) <= {Path(__file__).name, "__init__.py", "calls.py"}
    assert frames.count("calls.py") == 1
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    assert list(Path().iterdir()) == []


def test_a_notebook_shows_a_mistake_as_its_message_alone():
    with pytest.raises(tessera.UserError) as error:
        tessera.open("nowhere")
    assert error.value._render_traceback_() == [
        "FolderError: nowhere is not a folder; name the folder of a run, as `tessera run` printed it"
    ]


@pytest.mark.parametrize(
    ("keys", "place"),
    [({"clients": {"net": "__main__:net"}}, "clients.net"), ({"method": {"name": "__main__:FedAvg"}}, "method.name")],
)
def test_code_of_the_script_itself_is_refused_on_ray_with_the_way_out(keys, place, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "net", net, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "FedAvg", FedAvg, raising=False)
    with pytest.raises(tessera.ConfigError) as error:
        tessera.plan("fedavg-digits", **keys)
    assert [problem.place for problem in error.value.problems] == [place]
    assert "%%writefile mine.py" in str(error.value)
    assert tessera.plan("fedavg-digits", runner={"kind": "inline"}, **keys).clients == 10


# --- A finished run -----------------------------------------------------------------------------------------------


def test_the_result_is_that_of_the_folder(run):
    assert run.result == json.loads((run.folder / "result.json").read_text())
    assert run.score == run.result["figures"]["accuracy"]
    assert tessera.open(run.folder).ledger.equals(read(run.folder).ledger)
    assert repr(run) == f"Run(fedavg, 2 rounds, accuracy {100 * run.score:.1f} %, {run.folder})"


def test_rounds_are_a_table_with_a_row_for_each(run):
    table = run.rounds
    assert table["round"].to_pylist() == [0, 1]
    assert table["accuracy"].to_pylist() == [None, run.score]
    up = run.ledger.group_by(["round", "direction"]).aggregate([("bytes", "sum")]).to_pylist()
    assert {(row["round"], row["bytes_sum"]) for row in up if row["direction"] == "up"} == set(
        zip([0, 1], table["bytes_up"].to_pylist(), strict=True)
    )
    assert sum(table["bytes_down"].to_pylist()) == run.result["bytes_down"]
    assert sum(table["seconds"].to_pylist()) == pytest.approx(sum(run.seconds["seconds"].to_pylist()))


def test_clients_are_a_table_with_a_row_for_each(run):
    table = run.clients
    assert table.select(["client", "net", "width", "asked", "train/steps"]).to_pylist() == [
        {"client": client, "net": "mlp", "width": 1.0, "asked": 2, "train/steps": 2.0} for client in range(3)
    ]
    assert sum(table["examples"].to_pylist()) == 200
    assert sum(sum(table[f"examples/{name}"].to_pylist()) for name in "0123456789") == 200
    assert sum(table["bytes_up"].to_pylist()) == run.result["bytes_up"]
    loss = [row["value"] for row in run.measurements.to_pylist() if row["name"] == "loss" and row["client"] == 2]
    assert table["train/loss"].to_pylist()[2] == loss[-1]


def test_stages_and_the_servers_numbers_are_columns_of_their_own():
    lean = {"warmup": 1, "meta_images": 50, "meta_steps": 2, "distil_steps": 2, "distil_batch": 8, "distinct": 1}
    run = tessera.run("mosaic-lean-digits", rounds=2, method=lean, out="m", progress=False, **SMALL)
    teacher = run.rounds["teacher/accuracy"].to_pylist()
    assert [run.result["stages"]["teacher"]] == [value for value in teacher if value is not None]


# --- As it goes ---------------------------------------------------------------------------------------------------


def test_a_callback_hears_of_every_round_and_cannot_change_it(run):
    heard = []
    again = tessera.run(
        "fedavg-digits", rounds=2, evaluate={"every": 2}, out="a", progress=False, on_round=heard.append, **SMALL
    )
    assert [(one.number, one.rounds, one.clients) for one in heard] == [(0, 2, (0, 1, 2)), (1, 2, (0, 1, 2))]
    assert [dict(one.figures) for one in heard] == [{}, again.result["figures"]]
    assert sum(one.bytes_up for one in heard) == again.result["bytes_up"]
    with pytest.raises(TypeError):
        heard[1].figures["accuracy"] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        heard[1].number = 7
    assert again.result["digest"] == run.result["digest"]


def test_an_exception_of_the_callback_ends_the_run_which_then_goes_on_to_the_same_digest(run, capfd):
    def stop(done):
        if done.number == 0:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tessera.run("fedavg-digits", rounds=2, evaluate={"every": 2}, out="b", on_round=stop, **SMALL)
    assert "to go on with this run: tessera resume b" in capfd.readouterr().err
    with pytest.raises(tessera.UserError, match="the run has not finished"):
        tessera.open("b")
    resumed = tessera.resume("b", progress=False)
    assert resumed.result["digest"] == run.result["digest"]
    assert tessera.resume("b", progress=False).result == resumed.result


def test_a_finished_run_takes_more_rounds(run):
    tessera.run("fedavg-digits", rounds=1, out="c", progress=False, **SMALL)
    assert tessera.resume("c", rounds=2, progress=False).result["digest"] == run.result["digest"]


# --- What trains nothing, and comparisons -------------------------------------------------------------------------


def test_a_plan_reads_as_the_commands(capsys):
    print(tessera.plan("fedavg-digits", **SMALL))
    assert capsys.readouterr().out.startswith("fedavg: 16 rounds, 3 of 3 clients in each\n")


def test_a_partition_is_a_table_that_can_be_dealt_again(tmp_path):
    dealt = tessera.partition("fedavg-digits", **SMALL)
    assert dealt.table.column_names == ["row", "client"]
    assert sorted(dealt.table["row"].to_pylist()) == list(range(200))
    assert dealt.counts.sum() == 200
    assert repr(dealt).splitlines()[0].split() == ["client", "examples", "classes", *"0123456789"]
    dealt.save("dealt.parquet")
    dealt.draw("dealt.png")
    again = tessera.partition(
        "fedavg-digits",
        **{**SMALL, "partition": {"kind": "file", "path": "dealt.parquet", "alpha": None, "clients": None}},
    )
    assert again.fingerprint == dealt.fingerprint


def test_a_comparison_is_a_table_and_its_runs(capfd):
    compared = tessera.compare(["fedavg", "fedprox"], "fedavg-digits", seeds=2, rounds=1, out="cmp", **SMALL)
    assert compared.table["label"].to_pylist() == ["fedavg", "fedprox"]
    means = [
        (compared.runs[f"{label}-seed-0"].score + compared.runs[f"{label}-seed-1"].score) / 2
        for label in ("fedavg", "fedprox")
    ]
    assert compared.table["accuracy_mean"].to_pylist() == pytest.approx(means)
    assert compared.failed == {}
    said = capfd.readouterr()
    assert "fedprox-seed-1" in said.err
    assert said.out == ""


# --- In a script and a notebook -----------------------------------------------------------------------------------

SCRIPT = f"""
import engine as tessera

run = tessera.run("fedavg-digits", rounds=2, evaluate={{"every": 2}}, out="script", **{SMALL})
print(run.result["digest"])
"""


def test_a_script_keeps_its_stdout_and_hears_of_the_run_on_stderr(run):
    Path("script.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(Path.cwd())}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{run.result['digest']}\n", done.stderr
    assert "round 2/2  global" in done.stderr


def cells_of(*sources):
    """Output of a notebook's cells, each as one text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120, allow_errors=True)
    client.execute(cwd=str(Path.cwd()))
    return [[dict(output) for output in cell.outputs] for cell in notebook.cells]


def streams(outputs):
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_a_notebook_shows_the_run_its_tables_and_mistakes_as_messages(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(Path.cwd()))
    started, table, own, refused = cells_of(
        SCRIPT,
        "run.rounds.column_names",
        "import math\n"
        "from torch import nn\n"
        "def net(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
        f"keys = {SMALL}\n"
        "keys['clients'] = {'steps': 2, 'net': net}\n"
        "own = tessera.run('fedavg-digits', rounds=2, out='cell', progress=False, **keys)\n"
        "print(own.result['rounds'], own.config['clients']['net'])",
        "keys['runner'] = {'kind': 'ray'}\ntessera.run('fedavg-digits', **keys)",
    )
    said = streams(started)
    assert "round 2/2  global" in said
    assert said.endswith(f"{run.result['digest']}\n")
    assert table[0]["data"]["text/plain"].startswith("['round', 'accuracy'")
    assert streams(own) == "2 __main__:net\n"
    (error,) = refused
    assert error["ename"] == "ConfigError"
    shown = "\n".join(error["traceback"])
    assert shown.startswith("ConfigError: The configuration cannot be run:\n  clients.net")
    assert "%%writefile mine.py" in shown
    assert "File" not in shown


def test_the_line_that_moves_in_a_notebook_is_changed_in_place_and_ends_empty(monkeypatch):
    from io import StringIO
    from types import SimpleNamespace

    from engine.views.screen import NotebookScreen, notebook_console

    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    shell = SimpleNamespace(display=lambda data, raw, display_id: shown.append(data["text/plain"]) or handle)
    monkeypatch.setitem(sys.modules, "IPython.display", shell)
    now = [0.0]
    output = StringIO()
    screen = NotebookScreen(notebook_console(output), clock=lambda: now[0])
    for time, text in ((0.0, "one"), (0.1, "too soon"), (0.25, "two")):
        now[0] = time
        screen.say(text)
    screen.print("a line")
    screen.stop()
    assert shown == ["one", "two", ""]
    assert output.getvalue() == "a line\n"
