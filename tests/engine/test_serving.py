"""The model that MLflow gets: loaded as it loads models, and asked as its server is asked."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from algorithms.nets import build
from engine.commands.cli import cli
from engine.data.questions import Reading
from engine.models import load
from engine.models.description import task_values
from engine.models.serving import save
from engine.store.folder import RunFolder
from engine.store.models import write_description, write_tensors
from tests.algorithms.support_tasks import CASES, ROWS

mlflow = pytest.importorskip("mlflow")

VERSIONS = {"tessera-fl": "0.1.0", "torch": "2.13.0", "mlflow": "3.0.0"}


def folder_of(task, path):
    """A run's folder with a model of random weights alone."""
    case, files = CASES[task], RunFolder(path)
    path.mkdir()
    prepared = case.prepared.task
    torch.manual_seed(2)
    state = build(case.net, prepared.form, prepared.outputs).state_dict()
    probe = prepared.form.probe(1)
    inputs = {"input": probe} if isinstance(probe, torch.Tensor) else probe
    facts = {
        "task": {"name": task, "values": task_values(prepared)},
        "inputs": {name: {"shape": list(value.shape[1:])} for name, value in inputs.items()},
        "columns": {name: column.content for name, column in case.columns(ROWS, 1).items()},
        "roles": dict(case.roles),
        "size": None,
        "versions": VERSIONS,
    }
    write_description(files, [write_tensors(files, state, None, case.net, 1.0)], facts)
    return path


def invoke(model, body):
    """The answer of MLflow's own server to POST /invocations: status and JSON; no port is opened."""
    from mlflow.pyfunc.scoring_server import init

    answers = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/invocations",
        "raw_path": b"/invocations",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(init(model)(scope, receive, send))
    text = b"".join(answer.get("body", b"") for answer in answers)
    return answers[0]["status"], json.loads(text)


def png(seed):
    """An image of 8x8 and the bytes of its file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("task", sorted(CASES))
def test_mlflow_loads_the_model_of_every_task_and_it_answers_its_own_example(task, tmp_path):
    save(folder_of(task, tmp_path / "run"), tmp_path / "served")
    model = mlflow.pyfunc.load_model(str(tmp_path / "served"))
    asked = [column.name for column in model.metadata.get_input_schema()]
    assert asked == list(load(tmp_path / "run").reading.contents)
    found = model.predict(model.input_example)
    assert list(found.columns) == [column.name for column in model.metadata.get_output_schema()]
    assert len(found) == 1


def test_the_server_answers_images_as_the_run_does(tmp_path):
    folder = folder_of("images", tmp_path / "run")
    save(folder, tmp_path / "served")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [[base64.b64encode(png(number)).decode()] for number in range(3)]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    status, answer = invoke(mlflow.pyfunc.load_model(str(tmp_path / "served")), body)
    assert status == 200
    for number, row in enumerate(answer["predictions"]):
        expected = load(folder).predict(tmp_path / f"{number}.png").drop_columns(["file"]).to_pylist()[0]
        assert row["class"] == expected["class"]
        assert row["p_yes"] == pytest.approx(expected["p_yes"], abs=1e-6)


def test_the_server_takes_rows_of_a_table_with_values_that_are_missing(tmp_path):
    folder = folder_of("tables", tmp_path / "run")
    save(folder, tmp_path / "served")
    body = json.dumps({"dataframe_records": [{"age": 51.5, "town": "Bern"}, {"age": None, "town": None}]}).encode()
    status, answer = invoke(mlflow.pyfunc.load_model(str(tmp_path / "served")), body)
    assert status == 200
    frame = pd.DataFrame({"age": [51.5, np.nan], "town": ["Bern", None]})
    frame.to_parquet(tmp_path / "rows.parquet")
    expected = load(folder).predict(tmp_path / "rows.parquet").to_pylist()
    assert [row["class"] for row in answer["predictions"]] == [row["class"] for row in expected]


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    """The folder of a run whose clients have models of their own, and the model that MLflow got."""
    folder = tmp_path_factory.mktemp("personal")
    settings = ("runner.kind=inline", "rounds=1", "clients.steps=2", "partition.clients=3", "method.name=fedbn")
    words = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(cli, ["run", "fedavg-digits", *words, "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    (run,) = sqlite3.connect(folder / "mlflow.db").execute("select artifact_uri from runs").fetchall()
    return folder / "run", f"{run[0]}/model"


def test_of_personal_models_a_request_names_the_client_whose_own_one_is_asked(personal, tmp_path):
    folder, uri = personal
    (tmp_path / "one.png").write_bytes(png(1))
    row = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(png(1)).decode()]]}}
    model = mlflow.pyfunc.load_model(uri)
    found = []
    for client in (2, 0):
        status, answer = invoke(model, json.dumps({**row, "params": {"client": client}}).encode())
        expected = load(folder, client).predict(tmp_path / "one.png").drop_columns(["file"]).to_pylist()[0]
        assert status == 200
        assert answer["predictions"][0] == pytest.approx(expected, abs=1e-6)
        found.append(expected["p_3"])
    assert found[0] != pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(("params", "named"), [({}, None), ({"params": {"client": 3}}, 3)])
def test_of_personal_models_a_request_that_names_no_client_or_a_stranger_is_refused(personal, params, named):
    row = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(png(1)).decode()]]}}
    status, answer = invoke(mlflow.pyfunc.load_model(personal[1]), json.dumps({**row, **params}).encode())
    assert status == 400
    assert f"params.client = {named}: must be the number of a client whose own model is asked, 0 to 2" in str(answer)


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def process(*words, folder):
    """A process of Python's with children, all of which are ended after the block."""
    with (folder / "said.txt").open("w") as said:
        started = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait()


def answer_of(url, started, body=None):
    """The reply of a server that is starting, once it answers."""
    for _ in range(1200):
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.read()
        except URLError:
            assert started.poll() is None
            time.sleep(0.1)
    pytest.fail(f"{url} has not answered")


@pytest.mark.slow
def test_mlflows_own_command_serves_a_model_that_answers_as_the_run_does(tmp_path):
    folder, port = folder_of("images", tmp_path / "run"), closed_port()
    save(folder, tmp_path / "served")
    (tmp_path / "one.png").write_bytes(png(1))
    words = ("mlflow", "models", "serve", "--model-uri", str(tmp_path / "served"), "--env-manager", "local")
    with process(*words, "--host", "127.0.0.1", "--port", str(port), folder=tmp_path) as server:
        answer_of(f"http://127.0.0.1:{port}/ping", server)
        rows = {"columns": ["image"], "data": [[base64.b64encode(png(1)).decode()]]}
        body = json.dumps({"dataframe_split": rows}).encode()
        answer = json.loads(answer_of(f"http://127.0.0.1:{port}/invocations", server, body))
    expected = load(folder).predict(tmp_path / "one.png").drop_columns(["file"]).to_pylist()
    assert [row["class"] for row in answer["predictions"]] == [row["class"] for row in expected]
    assert answer["predictions"][0]["p_yes"] == pytest.approx(expected[0]["p_yes"], abs=1e-6)


def test_a_request_without_the_column_is_refused_by_the_signature(tmp_path):
    save(folder_of("texts", tmp_path / "run"), tmp_path / "served")
    body = json.dumps({"dataframe_split": {"columns": ["words"], "data": [["red apples"]]}}).encode()
    status, answer = invoke(mlflow.pyfunc.load_model(str(tmp_path / "served")), body)
    assert status == 400
    assert "text" in answer["message"]


def test_nothing_that_is_saved_is_a_pickle(tmp_path):
    save(folder_of("images", tmp_path / "run"), tmp_path / "served")
    names = {path.name for path in (tmp_path / "served").rglob("*") if path.is_file()}
    assert {"MLmodel", "tessera_model.py", "model.safetensors", "model.json", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pickle"))]


def test_a_run_that_mlflow_hears_of_leaves_its_model_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("runner.kind=inline", "rounds=1", "clients.steps=1", "partition.clients=2")
    words = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(cli, ["run", "fedavg-digits", *words, "--out", "first"])
    assert done.exit_code == 0, done.output
    (run,) = sqlite3.connect(tmp_path / "mlflow.db").execute("select run_uuid, artifact_uri from runs").fetchall()
    model = mlflow.pyfunc.load_model(f"{run[1]}/model")
    found = model.predict(pd.DataFrame({"image": [png(1)]}))
    (tmp_path / "one.png").write_bytes(png(1))
    assert found["class"].tolist() == load("first").predict("one.png").column("class").to_pylist()


def test_reading_is_told_by_the_description(tmp_path):
    assert load(folder_of("images", tmp_path / "run")).reading == Reading({"image": "image"}, {}, None)
