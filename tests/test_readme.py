"""What README and the pages in docs/ show is tried here: methods, configurations, commands, links, the names they give.

Whether shown outputs and references are those of the program now is held in tests/test_docs.py.
"""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from actors.runner import InlineRunner
from algorithms import methods
from docs import make
from tests.support import play, tiny_setup, tiny_shards

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
TOP = {**PAGES, **{name: (ROOT / name).read_text() for name in ("SECURITY.md", "CHANGELOG.md")}}


def blocks(language):
    """Every fenced block of a language, with its page."""
    found = rf"^```{language}\n(.*?)^```$"
    return [(page, text) for page in PAGES for text in re.findall(found, PAGES[page], flags=re.DOTALL | re.MULTILINE)]


METHODS = {
    re.search(r"(\w+)\.py", text)[1]: text for _, text in blocks("python") if re.match(r"# \S*fed\w+\.py\n", text)
}


@pytest.fixture
def shown_methods(tmp_path, monkeypatch):
    """The methods of the pages, where methods are found."""
    for name, text in METHODS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [str(tmp_path), *methods.__path__])
    importlib.invalidate_caches()


def test_the_method_of_the_readme_is_found_by_its_file_and_takes_the_lower_median(shown_methods):
    setup = tiny_setup("fedmedian", clients=3)
    sent = []

    class Ear(InlineRunner):
        def run(self, request):
            for outcome in super().run(request):
                sent.append(outcome.payload.tensors("weights"))
                yield outcome

    played = play(setup, Ear(setup, tiny_shards(3)), rounds=1)
    for name, median in played.state.model.items():
        middle = torch.stack([weights[name] for weights in sent]).sort(dim=0).values[1]
        assert torch.equal(median, middle), name


def test_the_method_that_shrinks_the_average_shrinks_what_is_trained_and_nothing_else(shown_methods):
    shrunk, plain = (
        play(setup, InlineRunner(setup, tiny_shards(3)), rounds=1)
        for setup in (tiny_setup(name, clients=3, nets=["small_cnn"]) for name in ("feddecay", "fedavg"))
    )
    trained = plain.method.trainable("small_cnn", plain.state.model)
    assert set(trained) < set(plain.state.model)
    for name, value in plain.state.model.items():
        assert torch.equal(shrunk.state.model[name], (1 - 0.01) * value if name in trained else value), name


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_every_python_example_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, page, "exec"), {"__name__": "example"})


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_every_configuration_shown_resolves(page, text, tmp_path, monkeypatch):
    from engine.compare import comparison_of
    from engine.config.loading import resolve
    from engine.sweep import sweep_of

    make.write_files(PAGES[page], tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tree = yaml.safe_load(text)
    if "methods" in tree:
        (tmp_path / "shown.yaml").write_text(text)
        assert comparison_of([], str(tmp_path / "shown.yaml"), (), 1).labels == tuple(tree["methods"])
    elif "sweep" in tree:
        assert sweep_of(tree, []).settings
    else:
        assert resolve(tree).rounds == tree["rounds"]


def test_the_readme_lists_every_command():
    from engine.commands.cli import cli

    listed = set(re.findall(r"^\| `tessera (\w+)", PAGES["README.md"], flags=re.MULTILINE))
    assert listed == set(cli.commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_names_is_there(page):
    """Those whose output is shown run besides, in tests/test_docs.py."""
    from engine.commands.cli import cli

    for name, words in re.findall(r"(?:`|^\$ )tessera ([a-z]+)([^`\n]*)", PAGES[page], flags=re.MULTILINE):
        assert name in cli.commands, name
        known = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert {*re.findall(r"--[\w-]+", words)} <= known, (name, words)
    for name, words in re.findall(r"(?:`|^\$ )python -m benchmarks\.(\w+)([^`\n]*)", PAGES[page], flags=re.MULTILINE):
        module = ROOT / "benchmarks" / name
        parser = (module / "__main__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
        assert all(f'"{option}"' in parser for option in re.findall(r"--[\w-]+", words)), (name, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:algorithms|actors|clusters|engine|docs|tests|benchmarks)/[\w./-]*)`", PAGES[page])
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_the_map_of_the_code_has_every_room():
    shown = set(re.findall(r"`((?:algorithms|actors|engine)/\w+)/`", PAGES["docs/writing-a-method.md"]))
    rooms = {
        str(file.parent.relative_to(ROOT))
        for top in ("algorithms", "actors", "engine")
        for file in [*ROOT.glob(f"{top}/*/__init__.py"), *ROOT.glob(f"{top}/*/*.yaml")]
    }
    assert shown == rooms


@pytest.mark.parametrize("page", TOP)
def test_every_link_leads_to_a_page_and_a_heading_that_are_there(page):
    prose = re.sub(r"^```.*?^```$", "", TOP[page], flags=re.DOTALL | re.MULTILINE)
    broken = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not leads_somewhere(page, link)]
    assert broken == []


def leads_somewhere(page, link):
    if link.startswith("https://"):
        return True
    name, _, heading = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    return target.exists() and (not heading or heading in anchors(target.read_text()))


def anchors(text):
    """The anchors that GitHub makes of headings: lower case, hyphens for spaces, nothing but letters, digits, - and
    _."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


def test_every_page_is_reached_from_the_readme():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        links = {(page, link) for page in new for link in re.findall(r"\]\(([\w./-]+\.md)[)#]", PAGES.get(page, ""))}
        ends = {str(((ROOT / page).parent / link).resolve().relative_to(ROOT)) for page, link in links}
        new = ends - reached
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES)
def test_nothing_waits_to_be_filled_in(page):
    assert not re.findall(r"^[A-Z]+(?:_[A-Z]+)*$", PAGES[page], flags=re.MULTILINE)
    assert "| table |" not in PAGES[page]
