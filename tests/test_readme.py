"""What the README shows is run here: its method, its configuration, its list of commands, the names it gives."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from actors.runner import InlineRunner
from algorithms import methods
from tests.support import play, tiny_casting, tiny_shards

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language, first_line=""):
    """The first fenced block of a language that begins with a line."""
    for found in re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL):
        if found.startswith(first_line):
            return found
    raise AssertionError(f"README has no {language} block that begins with {first_line!r}")


@pytest.fixture
def fedmedian(tmp_path, monkeypatch):
    """The README's method, where methods are found."""
    (tmp_path / "fedmedian.py").write_text(block("python", "# algorithms/methods/fedmedian.py"))
    monkeypatch.setattr(methods, "__path__", [str(tmp_path), *methods.__path__])
    importlib.invalidate_caches()
    return "fedmedian"


def test_the_method_of_the_readme_is_found_by_its_file_and_takes_the_lower_median(fedmedian):
    casting = tiny_casting(fedmedian, clients=3)
    sent = []

    class Ear(InlineRunner):
        def run(self, errand):
            for outcome in super().run(errand):
                sent.append(outcome.payload.tensors("weights"))
                yield outcome

    played = play(casting, Ear(casting, tiny_shards(3)), rounds=1)
    for name, median in played.state.model.items():
        middle = torch.stack([weights[name] for weights in sent]).sort(dim=0).values[1]
        assert torch.equal(median, middle), name


def test_the_configuration_of_the_readme_is_right():
    from engine.config.loading import resolve

    config = resolve(yaml.safe_load(block("yaml")))
    assert (config.method.name, config.rounds, config.partition.alpha) == ("mosaic", 16, 0.1)


def test_the_readme_lists_every_command():
    from engine.commands.cli import cli

    listed = set(re.findall(r"^\| `tessera (\w+)", README, flags=re.MULTILINE))
    assert listed == set(cli.commands)


def test_every_file_and_folder_that_the_readme_names_is_there():
    named = re.findall(r"`((?:algorithms|actors|clusters|engine|tests|benchmarks)/[\w./]*)`", README)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert named
    assert missing == []


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert not re.findall(r"^[A-Z]+(?:_[A-Z]+)*$", README, flags=re.MULTILINE)
