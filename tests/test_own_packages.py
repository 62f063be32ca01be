"""Our packages come first, and code of the user's own is found in the current folder, in every process of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tessera_fl
from tessera_fl import PACKAGES, put_packages_first, worker_setup

ROOT = Path(__file__).parent.parent

NETWORK = """
from torch import nn
def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""

QUICK = ["fedavg-digits", "--set", "clients.net=mine:make", "--set", "clients.steps=1", "--set", "rounds=1"]
QUICK += ["--set", "partition.clients=2", "--set", "mlflow.enabled=false"]


@pytest.fixture
def folder(tmp_path):
    """A user's project with packages of common names, and a file by the name of a module of Python's own."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the package of somebody else')")
    (tmp_path / "mine.py").write_text(NETWORK)
    (tmp_path / "statistics.py").write_text("raise ImportError('the module of somebody else')")
    return tmp_path


def python(folder, *words, path=ROOT, **variables):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


COMMAND = "import sys; sys.path.insert(0, {root!r}); import tessera_fl; del sys.path[0]; tessera_fl.main()"
"""As the installed command, which finds `tessera_fl` after all that PYTHONPATH names."""


def test_whatever_stands_in_the_current_folder_and_in_pythonpath_the_command_finds_our_packages(folder):
    (folder / "statistics.py").unlink()  # which PYTHONPATH is right to put before Python's own
    done = python(folder, "-P", "-c", COMMAND.format(root=str(ROOT)), "plan", *QUICK, path=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mine:make" in done.stdout


def test_a_worker_that_looks_first_in_the_drivers_folder_finds_ours_and_the_users_own(folder):
    code = f"""
import sys
import tessera_fl
tessera_fl.worker_setup({str(folder)!r})()
sys.path.insert(0, {str(folder)!r})  # as a worker of Ray's does with its first task
import actors.steps.worker, algorithms.nets, clusters, engine, statistics, mine
for module in (actors, algorithms, clusters, engine, mine):
    print(module.__file__)
"""
    done = python(folder, "-P", "-c", code)
    assert done.stderr == ""
    ours = [str(ROOT / name / "__init__.py") for name in ("actors", "algorithms", "clusters", "engine")]
    assert done.stdout.splitlines() == [*ours, str(folder / "mine.py")]


def test_another_package_that_was_imported_already_is_named(monkeypatch, tmp_path):
    other = type(sys)("algorithms")
    other.__path__ = [str(tmp_path / "algorithms")]
    monkeypatch.setitem(sys.modules, "algorithms", other)
    with pytest.raises(ImportError, match=rf"{tmp_path}/algorithms was imported as algorithms.*rename the folder"):
        put_packages_first()


def test_ctrl_c_while_the_command_line_is_imported_ends_as_any_other(monkeypatch, capsys):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(tessera_fl, "put_own_code_last", interrupt)
    with pytest.raises(SystemExit) as ended:
        tessera_fl.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_an_own_network_gives_one_digest_on_ray_and_inline_beside_packages_of_our_names(folder):
    pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)
    digests = {}
    for kind in ("inline", "ray"):
        words = ["run", *QUICK, "--set", f"runner.kind={kind}", "--out", f"out/{kind}"]
        done = python(folder, "-P", "-c", "import tessera_fl; tessera_fl.main()", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        digests[kind] = json.loads((folder / "out" / kind / "result.json").read_text())["digest"]
    assert digests["ray"] == digests["inline"]


def test_a_worker_finds_a_clone_that_is_not_installed(tmp_path):
    """Nothing but what travels by value is known to it."""
    cloudpickle = pytest.importorskip("cloudpickle")
    (tmp_path / "setup").write_bytes(cloudpickle.dumps(worker_setup(str(tmp_path))))
    code = "import pickle, sys; sys.path[:] = [p for p in sys.path if not p.startswith({root!r}) or '.venv' in p]\n"
    code += "pickle.load(open('setup', 'rb'))()\nimport algorithms; print(algorithms.__file__)"
    done = python(tmp_path, "-P", "-c", code.format(root=str(ROOT)), path="")
    assert done.stdout == f"{ROOT}/algorithms/__init__.py\n", done.stderr


def test_a_clone_runs_as_a_module_beside_another_tessera_that_is_installed(tmp_path):
    """As a job does, with which a clone travels to machines that have a version of their own."""
    other = tmp_path / "installed"
    for name in ("algorithms", "actors", "clusters", "engine"):
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").write_text("raise ImportError('the other version')")
    (other / "tessera_fl.py").write_text("raise ImportError('the other version')")
    done = python(ROOT, "-m", "tessera_fl", "--version", path=other)
    assert (done.returncode, done.stderr) == (0, "")
