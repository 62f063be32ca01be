"""The order of imports: algorithms below everything, engine above; nothing imports upwards."""

import ast
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorithms.core.task import Trait

ROOT = Path(__file__).parent.parent
OURS = {"algorithms", "actors", "clusters", "engine"}
MAY_USE = {
    "algorithms": {"algorithms"},
    "clusters": {"clusters"},
    "actors": {"actors", "algorithms", "clusters"},
    "engine": OURS,
}
SCIENCE = {"numpy", "torch", "torchvision", "sklearn", "threadpoolctl", "safetensors"}
LANGUAGE = {"transformers", "peft", "tokenizers", "accelerate", "huggingface_hub"}
"""Packages of the extra `llm`, without which all else works."""


FLOORS = {
    "algorithms": ["methods", "parts", "tasks mods selection", "core", "nets"],
    "actors": ["hosts", "cohort jobs distillation", "runner", "steps", "clock failures process"],
    "engine": [
        "__main__",
        "commands",
        "api",
        "sweep",
        "compare",
        "run",
        "views",
        "models",
        "planning store",
        "config",
        "partition pretraining",
        "data",
        "records",
        "errors units",
    ],
}
"""The rooms of a package from the top; a room imports from floors below its own, and nothing of its own floor."""


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def modules_of(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, `a.b.c` for `from a.b import c` included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_a_room_imports_only_from_floors_below_its_own(package):
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms.split()}
    wrong = set()
    for path in files_of(package):
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        for module in modules_of(path):
            top, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if (
                top == package
                and room != "__init__"
                and other in floor
                and other != room
                and floor[other] <= floor[room]
            ):
                wrong.add(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_every_room_has_its_floor(package):
    found = {path.relative_to(ROOT / package).with_suffix("").parts[0] for path in files_of(package)} - {"__init__"}
    assert found <= set(" ".join(FLOORS[package]).split())


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_downwards(package):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package)
        for name in imports_of(path)
        if name in OURS - MAY_USE[package]
    }
    assert not wrong


def code_of(path: Path) -> Iterator[ast.AST]:
    """Every node of a file but its docstrings and other strings that stand alone."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from (node for node in ast.walk(tree) if not (isinstance(node, ast.Constant) and id(node) in alone))


def names_in(path: Path) -> Iterator[str]:
    """Names that a file defines, takes, assigns or looks up."""
    for node in code_of(path):
        for kind, attribute in NAMED.items():
            if isinstance(node, kind):
                yield getattr(node, attribute) or ""


NAMED = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg", ast.alias: "name"}
NAMED |= dict.fromkeys((ast.FunctionDef, ast.ClassDef), "name")


def words_of(name: str) -> set[str]:
    """`GeneratedImages` and `generated_images` are generated and images."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def listed(folder: str) -> set[str]:
    """Names under which what lies in a folder of plug-ins is found."""
    return {path.stem for path in (ROOT / "algorithms" / folder).iterdir() if not path.name.startswith(("_", "."))}


OF_TASKS = {"image", "images", "pixel", "pixels", "token", "tokens", "vocabulary", "perplexity", "accuracy", "rmse"}
"""Words for what an example of one task is, or for how one task is measured."""

ABOUT_IMAGES = {
    "engine/data": "reads them",
    "engine/partition/shift.py": "changes columns by what they hold",
    "engine/pretraining": "makes language models, of tokens",
    "engine/views/report/pictures.py": "draws them",
    "engine/views/tracking.py": "hands them to MLflow by its own names",
    "engine/config/schema.py": "privacy.images is a key that is fixed",
    "engine/run/simulation.py": "reads that key",
}

STRINGS = {
    ("engine/run/simulation.py", "accuracy"): "a key of result.json, by the design",
    ("engine/store/folder.py", "accuracy"): "a key of result.json, by the design",
    ("engine/store/folder.py", "texts"): "privacy.texts is a key that is fixed",
    ("engine/store/journal.py", "texts"): "a field of a step's outcome",
}


@pytest.mark.parametrize("package", ["actors", "engine"])
def test_engine_and_actors_import_no_task_and_no_method_by_name(package):
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files_of(package)
        for module in modules_of(path)
        if re.match(r"algorithms\.(tasks|methods|core\.classification)\.", f"{module}.")
        and module not in ("algorithms.tasks", "algorithms.methods")
    }
    assert not wrong


@pytest.mark.parametrize("package", ["actors", "engine"])
def test_engine_and_actors_hold_no_name_of_a_task_or_method_and_no_figure_as_a_string(package):
    known = (listed("tasks") | listed("methods") | (OF_TASKS & {"perplexity", "accuracy", "rmse"})) - TRAITS
    found = {
        (str(path.relative_to(ROOT)), node.value)
        for path in files_of(package)
        for node in code_of(path)
        if isinstance(node, ast.Constant) and node.value in known
    }
    assert found <= STRINGS.keys()


ABOUT_METHODS = {
    ("engine/partition/config.py", "mosaic"): "a quantity by the name that its paper has for it",
    ("actors/steps/vetting.py", "dense"): "of tensors",
}
"""Words of the engine and the actors that are a method's name too."""


def classes_of_tasks() -> set[str]:
    """Names of the tasks' classes, in small letters."""
    nodes = (
        node for path in (ROOT / "algorithms/tasks").glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    )
    return {node.name.lower() for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Task")}


def words_in(path: Path) -> Iterator[str]:
    """Every word of a file's names and strings, whole and in its parts, in small letters; none of docstrings."""
    strings = (n.value for n in code_of(path) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    for text in (*names_in(path), *strings):
        for name in re.findall(r"\w+", text):
            yield from {name.lower(), *words_of(name)}


@pytest.mark.parametrize("package", ["actors", "engine"])
def test_engine_and_actors_have_no_method_and_no_class_of_a_task_in_any_word(package):
    known = listed("methods") | classes_of_tasks()
    assert {"fedavg", "co_boosting", "imagetask", "regressiontask"} <= known
    found = {(str(path.relative_to(ROOT)), word) for path in files_of(package) for word in words_in(path)}
    assert {(place, word) for place, word in found if word in known} == {
        (place, word) for place, word in ABOUT_METHODS if place.startswith(package)
    }


TRAITS = set(typing.get_args(Trait))
"""Properties of tasks, some of which are called as a task is: `language`, `images`."""


@pytest.mark.parametrize("package", ["actors", "engine"])
def test_engine_and_actors_speak_of_examples_and_not_of_what_one_task_has(package):
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files_of(package)
        for name in names_in(path)
        if words_of(name) & OF_TASKS and not str(path.relative_to(ROOT)).startswith(tuple(ABOUT_IMAGES))
    }
    assert not wrong


def test_every_place_that_may_speak_of_images_does():
    silent = {
        place
        for place in ABOUT_IMAGES
        if not any(
            words_of(name) & OF_TASKS
            for path in files_of("engine")
            if str(path.relative_to(ROOT)).startswith(place)
            for name in names_in(path)
        )
    }
    assert not silent


def test_algorithms_use_the_scientific_stack_and_nothing_else():
    allowed = sys.stdlib_module_names | SCIENCE | LANGUAGE | {"algorithms"}
    wrong = {
        f"{p.relative_to(ROOT)} imports {n}" for p in files_of("algorithms") for n in imports_of(p) if n not in allowed
    }
    assert not wrong


READS_FOLDERS = {"algorithms/nets/language_models.py imports pathlib"}
"""The weights of a named base model come from a folder, and from nowhere else in `algorithms`."""


def test_algorithms_touch_no_file_clock_environment_or_logger():
    banned = {"os", "time", "datetime", "logging", "socket", "subprocess", "pathlib", "tempfile", "random", "pickle"}
    found = {f"{p.relative_to(ROOT)} imports {n}" for p in files_of("algorithms") for n in imports_of(p) if n in banned}
    assert found == READS_FOLDERS


def imports_at_once(tree: ast.Module) -> Iterator[str]:
    """Top-level names of what a file imports when it is imported itself: outside functions and `if TYPE_CHECKING`."""
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.If)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    for node in ast.walk(tree):
        if id(node) not in later and isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif id(node) not in later and isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_imports_at_once_are_told_from_those_of_a_function():
    source = "import peft.tuners\nfrom torch import nn\ndef f():\n    import transformers\n"
    assert list(imports_at_once(ast.parse(source))) == ["peft", "torch"]


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_of_the_extra_for_language_models_are_imported_where_they_are_used_alone(package):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package)
        for name in imports_at_once(ast.parse(path.read_text()))
        if name in LANGUAGE
    }
    assert not wrong


def test_the_engine_and_the_actors_name_no_method_and_the_engine_no_stage_of_one():
    from actors.steps.orders import method_names
    from tests.support import needs_of, tiny_setup

    stages = {stage.name for name in method_names() for stage in needs_of(tiny_setup(name)).stages}
    assert {"mosaic", "fedavg"} <= set(method_names())
    assert "teacher" in stages
    wrong = {
        f"{path.relative_to(ROOT)}:{node.lineno} says {node.value!r}"
        for package, names in (("actors", {*method_names()}), ("engine", {*method_names(), *stages}))
        for path in files_of(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names and isinstance(node.value, str)
    }
    assert not wrong


def test_inline_needs_no_ray():
    """The whole inline path imports in a process in which `import ray` fails."""
    modules = (
        "algorithms.methods.fedavg",
        "actors.steps.worker",
        "actors.runner",
        "actors.cohort.delivery",
        "engine.run.rounds",
        "engine.run.simulation",
    )
    code = f"import sys; sys.modules['ray'] = None\nimport {', '.join(modules)}\nprint('imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
