"""The command line: exit codes, what is printed, and that a mistake leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from engine.commands.cli import cli

QUICK = [
    "--set",
    "runner.kind=inline",
    "--set",
    "rounds=2",
    "--set",
    "clients.steps=1",
    "--set",
    "mlflow.enabled=false",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tessera(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def refusal(*arguments):
    """The message of a refused command; it leaves exit code 2, one screen, no traceback and no file."""
    before = sorted(Path.cwd().rglob("*"))
    result = tessera(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) <= 24
    assert sorted(Path.cwd().rglob("*")) == before
    return result.output


def test_a_run_ends_with_0_and_a_folder_that_holds_everything(tmp_path):
    result = tessera("run", "fedavg-digits", *QUICK, "--out", "here")
    assert result.exit_code == 0, result.output
    assert "round 2/2  global" in result.output
    assert "folder: here" in result.output
    kept = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"config.yaml", "partition.parquet", "ledger.parquet", "rounds.parquet", "result.json"} <= kept
    assert json.loads((tmp_path / "here" / "result.json").read_text())["preset"] == "fedavg-digits"


def test_for_machines_the_result_is_json_on_stdout():
    result = tessera("run", "fedavg-digits", *QUICK, "--out", "here", "--json")
    values = json.loads(result.stdout)
    assert values["rounds"] == 2
    assert values == json.loads(Path("here/result.json").read_text())


def test_a_run_without_out_goes_into_the_first_free_folder_of_its_name_and_seed():
    for _ in range(2):
        assert tessera("run", "fedavg-digits", *QUICK, "--set", "seed=7").exit_code == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["fedavg-digits-seed-7", "fedavg-digits-seed-7-2"]


def test_the_written_configuration_runs_again_with_the_same_digest():
    assert tessera("run", "fedavg-digits", *QUICK, "--out", "a").exit_code == 0
    assert tessera("run", "a/config.yaml", "--out", "b").exit_code == 0
    first, second = (json.loads(Path(f, "result.json").read_text())["digest"] for f in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("overrides", "place", "right"),
    [
        (["clients.learning_rate=1"], "clients.learning_rate", "known here are"),
        (["clients.lr=fast"], 'clients.lr = "fast"', "must be a number"),
        (["partition.alpha=0"], "partition.alpha = 0", "must be larger than 0"),
        (["clients.cohort=11"], "clients.cohort = 11", "at most partition.clients = 10"),
        (["clients.net=resnet19"], 'clients.net = "resnet19"', "did you mean resnet18?"),
        (["clients.net=torchvision:vgg11"], 'clients.net = "torchvision:vgg11"', "images of 1x8x8"),
        (["data.source=parquet:nowhere"], "data.source", "nowhere"),
        (["data.source=torchvision:MNSIT", "data.root=."], "data.source", "MNIST"),
        (["partition.clients=2000"], "partition.clients", "2000"),
        (["runner.address=127.0.0.1:9"], "runner.address", "set runner.kind: ray"),
        (["privacy.forbid=[weights]"], "privacy.forbid", "allow these, or choose"),
        (["rounds"], "--set rounds", "section.key=value"),
    ],
)
def test_a_mistake_ends_with_2_naming_the_key_and_what_would_be_right(overrides, place, right):
    options = [word for text in ["runner.kind=inline", *overrides] for word in ("--set", text)]
    said = refusal("run", "fedavg-digits", *options)
    assert place in said
    assert right in said


def test_an_address_where_no_cluster_answers_ends_with_2():
    said = refusal("run", "fedavg-digits", "--set", "runner.address=127.0.0.1:9")
    assert "127.0.0.1:9" in said
    assert "ray start --head" in said


def test_a_store_of_mlflow_that_does_not_answer_ends_with_2():
    said = refusal("run", "fedavg-digits", *QUICK[:-2], "--set", "mlflow.tracking_uri=http://127.0.0.1:9")
    assert "mlflow.tracking_uri = http://127.0.0.1:9" in said
    assert "mlflow.enabled=false" in said


def test_more_generators_than_memory_allows_end_with_2():
    said = refusal("run", "mosaic-digits", "--set", "method.gan_width=20000", "--set", "runner.kind=inline")
    assert "partition.clients = 10" in said
    assert re.search(r"10 generators of [\d.]+ GB each need .*: \d+ would fit", said)


def test_a_preset_that_does_not_exist_ends_with_2_and_the_nearest():
    assert "did you mean fedavg-digits?" in refusal("run", "fedavg-digit")


def test_a_folder_that_holds_something_is_not_written_to():
    Path("here").mkdir()
    Path("here/mine.txt").write_text("mine")
    assert "here already holds something" in refusal("run", "fedavg-digits", *QUICK, "--out", "here")


@pytest.mark.parametrize("command", ["run", "partition"])
def test_a_folder_that_cannot_be_made_ends_with_2(command):
    Path("file").write_text("mine")
    said = refusal(command, "fedavg-digits", *QUICK, "--out", "file/here")
    assert said == "file/here cannot be made: Not a directory; name another folder with --out\n"


def test_an_empty_folder_is_taken():
    Path("here").mkdir()
    assert tessera("run", "fedavg-digits", *QUICK, "--out", "here").exit_code == 0


def test_a_report_is_written_anew_and_several_runs_are_set_side_by_side():
    for number in range(2):
        assert tessera("run", "fedavg-digits", *QUICK, "--set", f"seed={number}", "--out", f"r{number}").exit_code == 0
    first = Path("r0/report.html").read_bytes()
    Path("r0/report.html").unlink()
    assert tessera("report", "r0").output == "report: r0/report.html\n"
    assert Path("r0/report.html").read_bytes() == first
    assert tessera("report", "r0", "r1").output == "report: comparison.html\n"
    assert Path("comparison.html").read_bytes()[:15] == b"<!doctype html>"


def test_a_folder_without_a_finished_run_has_no_report():
    Path("empty").mkdir()
    assert "empty/result.json is missing" in refusal("report", "empty")


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "fedavg-digits", "--sets", "a=1"], ["report"]])
def test_a_wrong_command_ends_with_2(arguments):
    assert tessera(*arguments).exit_code == 2


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    import engine.run.launch

    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(engine.run.launch, "launch", broken)
    result = tessera("run", "fedavg-digits", *QUICK)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_ends_with_130_and_no_traceback(monkeypatch):
    import engine.run.launch

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.run.launch, "launch", interrupted)
    result = tessera("run", "fedavg-digits", *QUICK)
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_the_plan_trains_nothing_and_writes_nothing(tmp_path):
    result = tessera("plan", "fedavg-digits", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["placement"]["hosts"] >= 1
    assert report["memory"]["driver"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "networks:" in tessera("plan", "fedavg-digits").output


def test_a_partition_is_a_table_a_picture_and_a_file(tmp_path):
    result = tessera("partition", "fedavg-digits", "--out", "there")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].split()[:3] == ["client", "examples", "classes"]
    assert (tmp_path / "there/partition.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert set(pq.read_table(tmp_path / "there/partition.parquet").column_names) == {"row", "client"}


def test_a_partition_as_json_sums_to_the_training_set():
    values = json.loads(tessera("partition", "fedavg-digits", "--json").stdout)
    assert len(values["counts"]) == values["clients"] == 10
    assert sum(map(sum, values["counts"])) == 1297


def test_the_list_names_all_that_a_configuration_may_name():
    found = json.loads(tessera("list", "--json").stdout)
    methods = {method["name"]: method for method in found["methods"]}
    assert {"fedavg", "mosaic"} <= methods.keys()
    assert methods["mosaic"]["paper"].endswith("2505.19699")
    assert methods["fedavg"]["up"] == ["examples", "weights"]
    (setting,) = (s for s in methods["mosaic"]["settings"] if s["name"] == "alpha")
    assert (setting["type"], setting["ge"], setting["le"]) == ("number", 0, 1)
    assert {"mlp", "torchvision:NAME"} <= found["nets"].keys()
    assert {"digits", "sklearn:NAME", "csv:FILE", "parquet:FOLDER", "torchvision:NAME", "hf:NAME"} <= set(found["data"])
    assert set(found["partitions"]) == {
        "iid",
        "dirichlet",
        "dirichlet_balanced",
        "classes",
        "quantity",
        "power_law",
        "log_normal",
        "column",
        "file",
    }
    assert set(found["shifts"]) == {"noise", "rotation", "colour", "labels"}
    assert "mosaic-digits" in found["presets"]


def test_everything_in_the_list_has_a_sentence():
    found = json.loads(tessera("list", "--json").stdout)
    for section in ("nets", "data", "partitions", "shifts", "presets"):
        assert all(found[section].values()), section
    assert all(s["about"] for method in found["methods"] for s in method["settings"])
    assert "method mosaic: " in tessera("list").output


def test_each_check_of_the_doctor_says_what_is_there_and_what_to_do(monkeypatch):
    from engine.commands import doctor

    monkeypatch.setenv("TESSERA_DATA", "/no/such/folder")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.python, doctor.torchvision, doctor.cores, doctor.data))
    result = tessera("doctor")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.output.splitlines()] == ["ok", "ok", "ok", "fail", "->"]
    assert "TESSERA_DATA = /no/such/folder is no folder" in result.output


@pytest.mark.parametrize(
    ("lacking", "bits"), [("", "any"), ("a processor with AVX2", "native alone, portable needs a processor with AVX2")]
)
def test_the_doctor_names_the_kind_of_processor_and_the_bits_that_it_can_compute(monkeypatch, lacking, bits):
    from engine.commands import doctor

    monkeypatch.setattr("clusters.bits.processor", lambda: "Some CPU, AVX512")
    monkeypatch.setattr("clusters.bits.shortcoming_here", lambda: lacking)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.processor,))
    assert f"Some CPU, AVX512; bits: {bits}" in " ".join(tessera("doctor").output.split())


def test_the_doctor_finds_data_sets_in_folders_of_folders_and_in_single_files(monkeypatch, tmp_path):
    from engine.commands import doctor

    for name in ("mnist/train.parquet", "mnist/test.parquet", "audio/spoken/train-00000-of-00002.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "audio" / "notes.parquet").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    assert doctor.data().found == f"audio/notes.parquet, audio/spoken, mnist in {tmp_path}"


@pytest.mark.parametrize(
    ("there", "state", "found"),
    [
        ({}, "ok", "ray 9, torch 10.1.0+cpu, click 8.1"),
        ({"ray": None}, "warn", "ray is not installed"),
        ({"torch": "2.6.1"}, "fail", "torch 2.6.1 is older than 2.7"),
        ({"ray": "2.9", "click": None}, "fail", "ray 2.9 is older than 2.50, click is not installed"),
    ],
)
def test_the_doctor_holds_packages_to_the_projects_own_requirements(monkeypatch, there, state, found):
    from engine.commands import doctor

    versions = {"ray": "9", "torch": "10.1.0+cpu", "click": "8.1", **there}
    required = ["ray[default,data]>=2.50", "torch>=2.7", "click>=8.1", 'ruff>=0.6; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    finding = doctor.packages()
    assert (finding.state, finding.found) == (state, found)
    assert bool(finding.remedy) == (state != "ok")


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    from engine.commands import doctor

    def memory():
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "CHECKS", (memory,))
    (finding,) = json.loads(tessera("doctor", "--json").stdout)
    assert (finding["name"], finding["state"], finding["found"]) == ("memory", "fail", "OSError: no /proc here")


def test_a_warning_is_no_failure(monkeypatch):
    from engine.commands import doctor

    monkeypatch.delenv("TESSERA_DATA", raising=False)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.data,))
    result = tessera("doctor")
    assert result.exit_code == 0
    assert result.output.startswith("warn  data: TESSERA_DATA is not set")


ROOT = Path(__file__).resolve().parents[2]


def process(*arguments, **options):
    """The installed command's own way in, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell that starts tests in the background has them ignore Ctrl-C, and what they start inherits it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_help_and_list_load_nothing_that_they_do_not_need():
    code = (
        "import sys\nfrom engine.commands.cli import cli\n"
        "try:\n    cli(sys.argv[1:])\nfinally:\n"
        "    print('loaded', *(m for m in ('torch', 'ray', 'mlflow', 'matplotlib') if m in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments, loaded in (["--help"], "loaded"), (["list"], "loaded torch"):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.splitlines()[-1] == loaded


WITHOUT_RAY = """
import importlib.util, sys
class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoRay())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "ray" else found(name, package)
from engine.commands.cli import cli
cli(sys.argv[1:])
"""


@pytest.mark.parametrize(("kind", "code"), [("inline", 0), ("ray", 2)])
def test_without_ray_inline_runs_work_and_others_are_refused(kind, code):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "run", "fedavg-digits", *QUICK, "--set", f"runner.kind={kind}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("Ray is not installed" in done.stderr) == (kind == "ray")


def test_without_ray_nothing_is_submitted():
    asked = ["submit", "fedavg-digits", "--address", "http://127.0.0.1:1", "--out", "/shared/x"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert "Ray is not installed" in done.stderr


def test_the_command_ends_with_its_exit_code():
    running = process("run", "nothing-here")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (2, "")
    assert err.startswith("The configuration cannot be run:\n  nothing-here: neither a preset nor a file")


def test_ctrl_c_stops_a_run_with_130():
    running = process("run", "fedavg-digits", *QUICK, "--set", "rounds=100000", "--out", "here")
    for line in running.stdout:
        if "round" in line:
            break
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Traceback" not in err
