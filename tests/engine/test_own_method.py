"""A method of the user's own: one file in a folder of theirs, named by the configuration as pkg.module:Class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from engine.commands.cli import cli
from engine.store.folder import read

ROOT = Path(__file__).parents[2]

METHOD = '''
from dataclasses import dataclass, replace

from algorithms.core.contract import Reply, client_side
from algorithms.core.needs import Volume
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.methods.fedavg import FedAvg


class Shy(FedAvg):
    """FedAvg whose clients also say how many of their weights are negative."""

    paper = "mine, 2026"

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        shrink: float = setting(0.5, "factor of every weight after each round", gt=0)

    @classmethod
    def needs(cls, config, task, clients, work, counts):
        common = super().needs(config, task, clients, work, counts).adding(up={"signs": Volume(8)})
        return replace(common, own_kinds={"signs": "how many of the client's weights are negative"})

    def round(self, state, plan, cohort):
        state, told = super().round(state, plan, cohort)
        return replace(state, model={name: value * self.config.shrink for name, value in state.model.items()}), told

    @client_side
    def train(self, client):
        reply = super().train(client)
        negative = sum(int((value < 0).sum()) for value in reply.payload.tensors("weights").values())
        return replace(reply, payload=Payload({**reply.payload.parts, "signs": {"n": negative}}))
'''

CONFIGURATION = {
    "method": {"name": "mine.methods:Shy", "shrink": 0.9},
    "data": {"source": "digits", "limit": 200},
    "partition": {"kind": "iid", "clients": 3},
    "clients": {"net": "mlp", "steps": 2, "batch": 8, "lr": 0.1},
    "rounds": 2,
    "mlflow": {"enabled": False},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder outside of the repository, where the command is called: a package, and a configuration."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "methods.py").write_text(METHOD)
    write(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def write(folder, method):
    tree = {**CONFIGURATION, "method": {**CONFIGURATION["method"], **method}}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))


def installed(*arguments):
    """The command as it is installed, whose process has not the current folder among those of its modules."""
    start = "from tessera_fl import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-P", "-c", start, *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


@pytest.fixture
def called(folder, monkeypatch):
    """The command in this process, which finds the folder's modules."""
    monkeypatch.syspath_prepend(folder)
    return lambda *arguments: CliRunner().invoke(cli, list(arguments))


def test_it_runs_from_the_users_own_folder_and_its_own_kind_is_told(folder):
    done = installed("run", "run.yaml", "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["method"] == "mine.methods:Shy"
    # Three clients, two rounds, eight bytes each.
    assert result["bytes_by_kind"]["signs"] == {"up": 3 * 2 * 8, "down": 0}
    assert read(folder / "out").kinds["signs"] == "how many of the client's weights are negative"
    assert "how many of the client's weights are negative" in (folder / "out" / "report.html").read_text()


NAMELESS = '''

class Nameless(Shy):
    """Shy whose model is wrapped."""

    def predictor(self, state):
        import torch

        return torch.nn.Sequential(super().predictor(state)).eval()
'''


def test_a_model_that_cannot_be_made_again_is_said_before_the_first_round(folder, called):
    (folder / "mine" / "methods.py").write_text(METHOD + NAMELESS)
    write(folder, {"name": "mine.methods:Nameless"})
    done = called("run", "run.yaml", "--set", "runner.kind=inline", "--out", "out")
    assert done.exit_code == 0, done.output
    before = " ".join(done.output.split("round 1/2")[0].split())
    assert "model: the method predicts with a Sequential, which is no network of the kit's and has no name" in before
    assert (folder / "out" / "model.safetensors").exists()
    refused = called("predict", "out", "rows.png", "--code", "mine.methods")
    assert "ends with a predictor that is no network by name, so that it cannot be made again" in refused.output
    write(folder, {})
    shy = called("run", "run.yaml", "--set", "runner.kind=inline", "--out", "shy")
    assert "model:" not in shy.output


def test_it_goes_on_only_where_its_module_is_named_and_to_the_same_bits(folder, called):
    assert called("run", "run.yaml", "--set", "rounds=1", "--out", "out").exit_code == 0
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    refused = called("resume", "out", "--set", "rounds=2")
    assert refused.exit_code == 2
    assert "if you trust it, add --code mine.methods" in refused.output
    assert "mine.methods" not in sys.modules
    assert called("resume", "out", "--set", "rounds=2", "--code", "mine.methods").exit_code == 0
    assert called("run", "run.yaml", "--out", "whole").exit_code == 0
    digests = [json.loads((folder / name / "result.json").read_text())["digest"] for name in ("out", "whole")]
    assert digests[0] == digests[1]


def test_it_is_compared_under_a_label_that_names_a_folder(folder, called):
    done = called("compare", "fedavg,mine.methods:Shy", "run.yaml", "--seeds", "1", "--out", "out")
    assert done.exit_code == 0, done.output
    found = json.loads((folder / "out" / "mine.methods.Shy-seed-0" / "result.json").read_text())
    assert found["method"] == "mine.methods:Shy"


def test_the_plan_and_the_policy_know_its_kind(called):
    assert "to the server, signs: 24 B, every round" in called("plan", "run.yaml").output
    said = called("run", "run.yaml", "--set", "privacy.forbid=[signs]").output
    assert "privacy.forbid" in said
    assert "mine.methods:Shy sends examples, signs, weights" in said


@pytest.mark.parametrize(
    ("method", "changed", "words"),
    [
        ({"name": "mine.nowhere:Shy"}, None, ["method.name", "ModuleNotFoundError: No module named 'mine.nowhere'"]),
        ({"name": "mine.methods:Shi"}, None, ["method.name", "'Shi' in mine.methods is not a class derived from"]),
        ({"name": "mine.methods:setting"}, None, ["method.name", "is not a class derived from"]),
        ({"shrink": -1}, None, ["method.shrink", "must be larger than 0"]),
        ({"shrimp": 1}, None, ["method.shrimp", "did you mean shrink?"]),
        ({}, ("from dataclasses", "from datclasses"), ["method.name", "No module named 'datclasses'"]),
        ({}, ("class Config(FedAvg.Config)", "class Config"), ["method.name", "must be a frozen dataclass derived"]),
        ({}, ("shrink: float", "shrink: Flaot"), ["method.name", "name 'Flaot' is not defined"]),
        (
            {},
            ("Volume(8)", "Volume(8 / 0)"),
            ["method.name", "fails when it is asked what it needs: ZeroDivision"],
        ),
        ({}, (', own_kinds={"signs": "how many of the client\'s weights are negative"}', ""), ["method.name", "signs"]),
    ],
)
def test_what_is_wrong_with_it_is_said_on_one_screen_with_the_key(folder, called, method, changed, words):
    write(folder, method)
    if changed:
        before, after = changed
        assert before in METHOD
        text = METHOD.replace(before, after)
        (folder / "mine" / "methods.py").write_text("from __future__ import annotations\n" + text)
    from engine.config.method import settings_model

    settings_model.cache_clear()
    done = called("run", "run.yaml", "--out", "out")
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) <= 24
    assert all(word in done.output for word in words), done.output
    assert not (folder / "out").exists()
