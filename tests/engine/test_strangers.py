"""A task of a user's own, as docs/tasks.md shows it: one file in a folder of theirs, named as module:Class."""

import json
import re
import sys

import pytest
import yaml
from click.testing import CliRunner

from docs import make
from engine.commands.cli import cli
from tests.engine.test_own_method import installed

PAGE = (make.ROOT / "docs" / "tasks.md").read_text()
METHOD_PAGE = (make.ROOT / "docs" / "writing-a-method.md").read_text()


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The command, called in a folder that holds what the two pages show."""
    make.write_files(METHOD_PAGE, tmp_path)
    make.write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield lambda *arguments: CliRunner().invoke(cli, list(arguments))
    forget()


def forget():
    for name in ("quantiles", "fedshrink"):
        sys.modules.pop(name, None)


def test_it_runs_and_its_figure_is_named_wherever_a_person_looks(called, tmp_path):
    done = called("run", "quantiles.yaml", "--set", "rounds=2", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "global      pinball" in done.output
    assert "pinball, final" in done.output
    assert "accuracy" not in done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["headline"] == {
        "name": "pinball",
        "better": "lower",
        "unit": "",
        "value": result["figures"]["pinball"],
    }
    assert "pinball" in (tmp_path / "out" / "report.html").read_text()


def test_it_is_sixty_lines_long():
    """Beside the comment that names its file on the page."""
    (text,) = re.findall(r"^```python\n# quantiles\.py\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(text.splitlines()) <= 60


@pytest.mark.xdist_group("ray")
def test_with_a_method_of_ones_own_it_runs_on_ray_to_the_bits_of_an_inline_run(called, tmp_path):
    """Both lie in a folder outside of the repository, where the installed command is called."""
    pytest.importorskip("ray")
    quick = ["--set", "method.name=fedshrink:FedShrink", "--set", "rounds=1", "--set", "clients.steps=2"]
    there = installed(
        "run", "quantiles.yaml", *quick, "--set", "runner.kind=ray", "--set", "runner.hosts=1", "--out", "ray"
    )
    assert there.returncode == 0, there.stdout + there.stderr
    assert called("run", "quantiles.yaml", *quick, "--out", "inline").exit_code == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("ray", "inline")]
    assert [result["runner"] for result in results] == ["ray", "inline"]
    assert results[0]["digest"] == results[1]["digest"]


def test_an_objective_of_a_methods_own_is_the_tasks_loss_and_what_it_adds(called, tmp_path):
    quick = ["quantiles.yaml", "--set", "rounds=1"]
    own = ["--set", "method.name=fedshrink:FedShrink", "--set"]
    assert called("run", *quick, "--out", "plain").exit_code == 0
    assert called("run", *quick, *own, "method.decay=0.0", "--out", "zero").exit_code == 0
    assert called("run", *quick, *own, "method.decay=1.0", "--out", "one").exit_code == 0
    digests = {
        name: json.loads((tmp_path / name / "result.json").read_text())["digest"] for name in ("plain", "zero", "one")
    }
    assert digests["plain"] == digests["zero"] != digests["one"]


def test_it_goes_on_only_where_its_module_is_named_and_to_the_same_bits(called, tmp_path):
    assert called("run", "quantiles.yaml", "--set", "rounds=1", "--out", "out").exit_code == 0
    forget()
    refused = called("resume", "out", "--set", "rounds=2")
    assert refused.exit_code == 2
    assert 'task.name = "quantiles": this folder names code of one\'s own' in refused.output
    assert "add --code quantiles" in refused.output
    assert "quantiles" not in sys.modules
    assert called("resume", "out", "--set", "rounds=2", "--code", "quantiles").exit_code == 0
    assert called("run", "quantiles.yaml", "--set", "rounds=2", "--out", "whole").exit_code == 0
    digests = [json.loads((tmp_path / name / "result.json").read_text())["digest"] for name in ("out", "whole")]
    assert digests[0] == digests[1]


def test_a_failed_step_is_performed_again_only_where_its_task_is_named(called, tmp_path):
    """The step that is tried before the start has two examples."""
    text = (tmp_path / "quantiles.py").read_text()
    before = "        above = targets - outputs[:, 0]\n"
    assert before in text
    (tmp_path / "quantiles.py").write_text(text.replace(before, before + "        1 / (len(targets) < 3)\n"))
    failed = called("run", "quantiles.yaml", "--out", "out")
    assert failed.exit_code == 1
    assert "tessera replay out --round 0 --step train --client 0 --pdb --code quantiles" in failed.output
    forget()
    step = ["replay", "out", "--round", "0", "--step", "train", "--client", "0"]
    refused = called(*step)
    assert refused.exit_code == 2
    assert "add --code quantiles" in refused.output
    assert "quantiles" not in sys.modules
    assert isinstance(called(*step, "--code", "quantiles").exception, ZeroDivisionError)


def test_methods_are_compared_by_its_figure_and_the_smallest_is_best(called, tmp_path):
    tree = yaml.safe_load((tmp_path / "quantiles.yaml").read_text())
    # So strong a pull to 0 leaves next to nothing of the network's answers.
    methods = {"plain": tree.pop("method"), "small": {"name": "fedshrink:FedShrink", "decay": 5.0}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({**tree, "methods": methods}))
    done = called("compare", "both.yaml", "--seeds", "1", "--out", "out")
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "table.md").read_text()
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert "pinball (lower is better)" in head
    found = {row.split(" | ")[0].strip("| "): row.split(" | ")[1] for row in rows}
    assert float(found["plain"].strip("*")) < float(found["small"])
    assert found["plain"].startswith("**")


@pytest.mark.parametrize(
    ("task", "changed", "words"),
    [
        ({"name": "nowhere:Quantiles"}, None, ["task.name", "No module named 'nowhere'"]),
        ({"name": "quantiles:Quantile"}, None, ["'Quantile' in quantiles is not a class derived from"]),
        ({"name": "quantiles:np"}, None, ["'np' in quantiles is not a class derived from"]),
        ({"share": 2}, None, ["task.share = 2", "must be larger than 0 and less than 1"]),
        ({"shares": 0.5}, None, ["task.shares", "did you mean share?"]),
        ({}, ("import numpy", "import nunpy"), ["task.name", "ModuleNotFoundError: No module named 'nunpy'"]),
        ({}, ("class Quantiles(Task):", "class Quantiles(Task:"), ["task.name", "quantiles.py, line "]),
        ({}, ("    def losses(", "    def lossses("), ["Quantiles lacks losses, which every task has"]),
        ({}, ("    figures = ", "    figgures = "), ["Quantiles lacks figures, which every task has"]),
        ({}, ("class Settings(Config)", "class Settings"), ["task.name", "Settings"]),
        ({}, ("len(names)", "len(name)"), ["task.name", "fails on the columns of", "NameError", "(quantiles.py"]),
        ({}, ('name, "target", "number"', '"none", "target", "number"'), ["have no column 'none'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_on_one_screen_with_the_key(called, tmp_path, task, changed, words):
    tree = yaml.safe_load((tmp_path / "quantiles.yaml").read_text())
    (tmp_path / "quantiles.yaml").write_text(yaml.safe_dump({**tree, "task": {**tree["task"], **task}}))
    if changed:
        before, after = changed
        text = (tmp_path / "quantiles.py").read_text()
        assert before in text
        (tmp_path / "quantiles.py").write_text(text.replace(before, after))
    done = called("run", "quantiles.yaml", "--out", "out")
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) <= 24
    assert all(word in " ".join(done.output.split()) for word in words), done.output
    assert not (tmp_path / "out").exists()
