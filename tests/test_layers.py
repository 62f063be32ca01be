"""The order of imports: algorithms below everything, engine above; nothing imports upwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"algorithms", "actors", "clusters", "engine"}
MAY_USE = {
    "algorithms": {"algorithms"},
    "clusters": {"clusters"},
    "actors": {"actors", "algorithms", "clusters"},
    "engine": OURS,
}
SCIENCE = {"numpy", "torch", "torchvision", "sklearn", "threadpoolctl"}


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_downwards(package):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package)
        for name in imports_of(path)
        if name in OURS - MAY_USE[package]
    }
    assert not wrong


def test_algorithms_use_the_scientific_stack_and_nothing_else():
    allowed = sys.stdlib_module_names | SCIENCE | {"algorithms"}
    wrong = {
        f"{p.relative_to(ROOT)} imports {n}" for p in files_of("algorithms") for n in imports_of(p) if n not in allowed
    }
    assert not wrong


def test_algorithms_touch_no_file_clock_environment_or_logger():
    banned = {"os", "time", "datetime", "logging", "socket", "subprocess", "pathlib", "tempfile", "random", "pickle"}
    wrong = {f"{p.relative_to(ROOT)} imports {n}" for p in files_of("algorithms") for n in imports_of(p) if n in banned}
    assert not wrong


def test_inline_needs_no_ray():
    """The whole inline path imports in a process in which `import ray` fails."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import algorithms.fedavg, actors.worker, actors.runner, actors.delivery, engine.rounds, engine.simulation\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
