"""What SECURITY.md promises: no pickle, no shell, no path out of the run's folder, no code but what the user names."""

import ast
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.commands.cli import cli
from engine.config import load, own_code, preset_names, resolve, to_tree
from engine.errors import ConfigError
from engine.partition.picture import label_map
from engine.records import StageRecord
from engine.run.launch import free_folder
from engine.run.replay import ReplayError, read_failed_order
from engine.store.folder import read
from engine.views.report import write_report
from engine.views.tracking import MlflowWatcher, _name, reach
from tests.engine.runs import evaluation, start_of, stored
from tests.engine.test_config import changed

ROOT = Path(__file__).parent.parent
FILES = sorted(path for name in ("algorithms", "actors", "clusters", "engine") for path in (ROOT / name).rglob("*.py"))

HOSTILE = st.sampled_from(
    [
        "../../etc/passwd",
        "..",
        "/tmp/out",
        "a/b",
        "a\\b",
        "~root",
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned",
        "a\nb",
        "\x00",
        "\x1b[2J",
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style><script>alert(1)</script>",
        "javascript:alert(1)",
        "$\\frac$",
        "{0.__class__}",
        "%s%n",
        "os:system",
        "file:///etc/passwd",
    ]
)
NAMES = HOSTILE | st.text(max_size=40)
QUIET = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- The code itself --------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "yaml.load": "may make any object",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "may make any object",
    "pickle.load": "a pickle is code",
    "pickle.loads": "a pickle is code",
    "cloudpickle.load": "a pickle is code",
    "cloudpickle.loads": "a pickle is code",
    "marshal.loads": "code",
    "shelve.open": "reads pickles",
    "joblib.load": "reads pickles",
    "dill.load": "a pickle is code",
    "dill.loads": "a pickle is code",
    "pandas.read_pickle": "a pickle is code",
    "torch.load": "reads pickles",
    "torch.save": "writes pickles",
    "pickle.dump": "writes a pickle",
}

IMPORTERS = {
    "actors/steps/finding.py": "methods and tasks: modules of `algorithms`, or pkg.module:Class",
    "algorithms/nets/registry.py": "networks: pkg.module:function",
    "algorithms/nets/vision.py": "torchvision",
    "algorithms/nets/language_models.py": "transformers, peft and huggingface_hub, which need not be installed",
}
"""The only files that import by a name they are given, and what."""


STATE_WRITER = "engine/models/exporting.py"
"""The only file that writes what torch's own format is, a pickle, for a person who asks for it; nothing of ours reads
one."""


def dotted(node):
    """`os.system` of the syntax tree of a call's function."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def breaches(source, file):
    """Promises that a file breaks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for base in map(dotted, node.bases):
                if base.endswith("Unpickler") and not any(
                    isinstance(part, ast.FunctionDef) and part.name == "find_class" for part in node.body
                ):
                    yield f"{file}:{node.lineno}: an unpickler that lets a file name any code"
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {word.arg: word.value for word in node.keywords}
        where = f"{file}:{node.lineno}: {name}"
        if name in FORBIDDEN and (name, file) != ("torch.save", STATE_WRITER):
            yield f"{where}: {FORBIDDEN[name]}"
        if name.endswith("Unpickler"):
            yield f"{where}: a pickle is code"
        if name in ("np.load", "numpy.load") and getattr(given.get("allow_pickle"), "value", False) is not False:
            yield f"{where}: it reads a pickle"
        if "shell" in given and getattr(given["shell"], "value", None) is not False:
            yield f"{where}: a shell"
        if name.endswith("import_module") and file not in IMPORTERS:
            yield f"{where}: imports by a name it is given"


def test_our_code_reads_no_pickle_starts_no_shell_and_runs_no_text():
    assert len(FILES) > 100
    found = [b for path in FILES for b in breaches(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "torch.load('f')",
        "torch.load('f', weights_only=True)",
        "pickle.load(f)",
        "pickle.Unpickler(f).load()",
        "class Mine(pickle.Unpickler): pass",
        "np.load('f', allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "importlib.import_module(name)",
    ],
)
def test_each_breach_is_found(line):
    assert list(breaches(line, "engine/new.py"))


@pytest.mark.parametrize("line", ["np.load('f')", "net.eval()", "re.compile()"])
def test_what_is_harmless_is_none(line):
    assert list(breaches(line, "engine/new.py")) == []


# --- Names ------------------------------------------------------------------------------------------------------------


@QUIET
@given(name=NAMES)
def test_a_method_is_one_of_those_there_are(name):
    if name == "fedavg":
        return
    with pytest.raises(ConfigError, match="method"):
        resolve(changed(method={"name": name}))


@QUIET
@given(name=NAMES)
def test_a_configuration_is_a_preset_or_the_file_that_was_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in preset_names():
        return
    with pytest.raises((ConfigError, ValueError)):  # ValueError: a null byte is no part of a path
        load(str(Path("nowhere") / name.lstrip("/~")) if name else "nowhere")


@QUIET
@given(name=NAMES.filter(bool), seed=st.integers(0, 99))
def test_a_run_without_out_lies_in_the_folder_runs(name, seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "\x00" in name:
        return
    folder = free_folder(name, seed)
    assert folder.parent == Path("runs")
    assert folder.resolve().parent == (tmp_path / "runs").resolve()


@QUIET
@given(step=NAMES)
def test_a_failed_step_is_looked_for_in_the_runs_folder_alone(step, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"")
    with pytest.raises(ReplayError, match=r"is no name of a step|does not exist"):
        read_failed_order(tmp_path / "run", 0, step, 0)


# --- What a person looks at -------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """A run, and the tags and names of attributes of its page."""
    folder = tmp_path_factory.mktemp("harmless")
    run = stored(folder / "run")
    write_report([run], folder / "report.html")
    tags = Tags((folder / "report.html").read_text()).found
    return run, {tag for tag, _ in tags}, {name for _, attributes in tags for name in attributes}


@QUIET
@given(name=NAMES)
def test_no_name_becomes_markup_in_the_report(name, harmless, tmp_path):
    run, tags, attributes = harmless
    hostile = replace(
        run,
        folder=Path("runs") / (name.replace("\x00", "") or "run"),
        class_names=(name, "dog", "owl"),
        result=dict(run.result) | {"method": name, "preset": name, "versions": {name: name}},
        facts={name: name},
        config={"data": {"source": name}, name: name},
        stages=(*run.stages, StageRecord(2, name, evaluation(0.5))),
    )
    write_report([hostile], tmp_path / "report.html")
    found = Tags((tmp_path / "report.html").read_text()).found
    assert {tag for tag, _ in found} <= tags | {"details", "summary", "p", "span", "small", "h4", "polyline", "circle"}
    for _, given_ in found:
        assert not [attribute for attribute in given_ if attribute.startswith("on")]
        assert all(given_[link].startswith("data:image/png") for link in ("src", "href") if link in given_)
        assert given_.keys() <= attributes | {"title", "class", "style"}


@QUIET
@given(name=NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_class_name_is_a_formula_in_a_picture(name):
    label_map(np.ones((2, 3), np.int64), (name, f"${name}$", "owl"), f"${name}$").canvas.draw()


@given(name=NAMES)
def test_names_in_mlflow_hold_no_markup_no_control_character_and_no_way_out(name):
    assert not re.search(r"[<>\"'`&;$\x00-\x1f\x7f\\]|^/|\.\./|/\.\.", _name(name))


def test_mlflow_keeps_hostile_names_as_text_in_its_own_folder(tmp_path):
    evil = "<img src=x onerror=alert(1)>/../../../out"
    start = start_of(tmp_path / "run", class_names=(evil, "$\\frac$", "owl"))
    start = replace(start, config={**start.config, "data": {"source": evil}, evil: evil}, preset=evil)
    start.folder.mkdir()
    watcher = MlflowWatcher(reach(None, start.folder))
    watcher.started(start)
    (kept,) = watcher._client.search_runs([watcher._experiment])
    assert kept.data.tags["preset"] == evil
    assert evil in kept.data.params.values()
    assert watcher._client.list_artifacts(kept.info.run_id)[0].path == "label_map.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlartifacts", "mlflow.db", "run"]


# --- A run's folder that somebody else made ---------------------------------------------------------------------------

TRAP = """
from pathlib import Path
Path({mark!r}).touch()
from algorithms.nets import Images, build
def net(shape, classes):
    return build("mlp", Images(shape), classes)
"""


@pytest.fixture(params=["clients.net", "method.name", "task.name"])
def given_folder(tmp_path, monkeypatch, request):
    """A folder whose configuration names a module `trap`, which can be imported and leaves a mark when it is."""
    mark = tmp_path / "imported"
    (tmp_path / "trap.py").write_text(TRAP.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    run = ["run", "fedavg-digits", "--out", str(folder)]
    run += [w for key in ("runner.kind=inline", "rounds=1", "mlflow.enabled=false") for w in ("--set", key)]
    done = CliRunner().invoke(cli, run)
    assert done.exit_code == 0, done.output
    config = yaml.safe_load((folder / "config.yaml").read_text())
    section, key = request.param.split(".")
    config[section] = {**config[section], key: "trap:net"} if section == "clients" else {key: "trap:net"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, mark


def test_a_folder_that_names_code_is_not_resumed_and_nothing_is_imported(given_folder):
    folder, mark = given_folder
    (folder / "result.json").unlink()
    done = CliRunner().invoke(cli, ["resume", str(folder)])
    assert done.exit_code == 2
    assert '"trap": this folder names code of one\'s own; if you trust it, add --code trap' in done.output
    assert not mark.exists()


def test_code_that_is_named_on_the_command_line_is_imported(given_folder):
    folder, mark = given_folder
    CliRunner().invoke(cli, ["resume", str(folder), "--code", "trap", "--set", "rounds=2"])
    assert mark.exists()


def test_a_failed_step_of_a_folder_that_names_code_is_not_performed(given_folder):
    from actors.steps.orders import Failure, Order
    from algorithms.core.payload import Payload
    from algorithms.core.seeds import Seed
    from engine.run.replay import save_failed_order

    folder, mark = given_folder
    order = Order("train", 0, Seed(0, round=0, phase="train", client=0), Payload.of(examples={"n": 1}), {})
    save_failed_order(folder, Failure(0, "fedavg", "train", order.seed, "", "", order))
    done = CliRunner().invoke(cli, ["replay", str(folder), "--round", "0", "--step", "train", "--client", "0"])
    assert done.exit_code == 2
    assert "add --code trap" in done.output
    assert not mark.exists()


def test_a_report_about_a_folder_that_names_code_imports_nothing(given_folder):
    folder, mark = given_folder
    done = CliRunner().invoke(cli, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert "trap:net" in str(read(folder).config)
    assert not mark.exists()


def test_modules_are_found_wherever_a_configuration_can_name_one():
    tree = {
        "clients": {"net": {"mlp": 2, "mine.nets:small": 1}},
        "method": {"name": "mosaic", "student": "other:net"},
        "data": {"source": "torchvision:MNIST"},
    }
    assert own_code.named_modules(tree) == {"clients.net.mine.nets:small": "mine.nets", "method.student": "other"}
    assert own_code.named_modules({"clients": {"net": ["mlp", "torchvision:resnet18", "a:b"]}}) == {
        "clients.net.2": "a"
    }
    own_task = {"task": {"name": "mine.tasks:Density", "ignore": ["a:b"]}}
    assert own_code.named_modules(own_task) == {"task.name": "mine.tasks"}
    assert own_code.code_options(tree) == " --code mine.nets --code other"
    assert own_code.resume_command(Path("my run"), tree) == "tessera resume 'my run' --code mine.nets --code other"


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_needs_code_of_ones_own(preset):
    assert own_code.named_modules(to_tree(load(preset))) == {}


def test_a_folder_of_json_and_yaml_alone_cannot_make_objects(tmp_path):
    folder = tmp_path / "run"
    stored(folder)
    (folder / "config.yaml").write_text("method: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ValueError, match="not YAML: could not determine a constructor"):
        read(folder)
    assert json.loads((folder / "start.json").read_text())
