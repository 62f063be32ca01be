"""Wrong data at the command line: one screen with key, value and way out, exit code 2, nothing written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.engine.test_cli import elsewhere, refusal, tessera  # noqa: F401

CSV = "height,colour,label\n1.5,red,yes\n2.5,blue,no\n3.5,red,yes\n"


def configuration(folder, text=CSV, task=None, net="mlp", **data):
    """A file that runs FedAvg on a small table."""
    (folder / "table").mkdir()
    for half in ("train", "test"):
        (folder / "table" / f"{half}.csv").write_text(text)
    tree = {
        "method": {"name": "fedavg"},
        "data": {"source": "csv:table", **data},
        "task": task,
        "partition": {"kind": "iid", "clients": 2},
        "clients": {"net": net, "steps": 1, "batch": 2, "lr": 0.1},
        "rounds": 1,
        "mlflow": {"enabled": False},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(tree))
    return "own.yaml"


def test_a_table_runs(tmp_path):
    result = tessera("run", configuration(tmp_path), "--out", "here")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"columns": {"label": "colours"}}, "data.columns.label = ", "did you mean colour?"),
        ({"columns": {"image": "height"}}, "data.columns.image = ", "holds number values, not image"),
        ({"columns": {"label": "height"}}, "data.columns.label = ", "height"),
        ({"columns": {"label": []}}, "data.columns = ", "label must name a column, or a list of columns"),
        ({"columns": "label"}, "data.columns = ", "must be a mapping"),
        (
            {"columns": {"target": "colour"}, "task": {"name": "regression"}},
            "data.columns.target = ",
            "column 'colour' holds category values (table/train.csv line 2 has 'red'); name a number column",
        ),
        (
            {"text": "x,target\n1,3.5\n2,low\n3,4.5\n"},
            "data.source = ",
            "x (number), target (category, as 'low'); say by task.name which it is",
        ),
        ({"text": CSV + "4.5,red\n"}, "data.source = ", "train.csv line 5 has 2 values, but the header has 3 columns"),
        ({"text": CSV + "4.5,red,\n"}, "data.source = ", "train.csv line 5 has no label"),
        (
            {"text": CSV + ",red,no\n", "columns": {"target": "height"}, "task": {"name": "regression"}},
            "data.columns.target = ",
            "train.csv line 5",
        ),
        ({"text": CSV + "4.5,red,perhaps,\n"}, "data.source = ", "train.csv line 5"),
        (
            {
                "text": CSV.replace("label", "label,size").replace("yes", "yes,1e999").replace("no", "no,1"),
                "columns": {"label": "size"},
            },
            "data.columns.label = ",
            "holds inf, which is no class",
        ),
        ({"source": "csv:none.csv"}, "data.source = ", "there is no file"),
        ({"source": "sklearn:wines"}, "data.source = ", "did you mean wine?"),
        ({"source": "generated:poems"}, "data.source = ", "use generated:sentences"),
    ],
)
def test_wrong_data_are_refused_by_key_value_and_way_out(tmp_path, monkeypatch, given, key, words):
    monkeypatch.delenv("TESSERA_DATA", raising=False)
    said = " ".join(refusal("run", configuration(tmp_path, **given), "--out", "here").split())
    assert key in said
    assert words in said


@pytest.mark.parametrize(
    ("name", "source", "needed", "serving", "not_serving"),
    [
        (
            "dense",
            "sklearn:diabetes",
            "classes and images",
            ["fedavg", "fedrolex with mask: false"],
            ["fedrs", "mosaic"],
        ),
        ("mosaic", "sklearn:wine", "images", ["fedavg", "fedrs", "mosaic with generator: features"], ["dense"]),
        ("fedrs", "sklearn:diabetes", "classes", ["fedavg", "scaffold"], ["mosaic"]),
    ],
)
def test_a_method_that_does_not_serve_a_task_names_those_that_do(tmp_path, name, source, needed, serving, not_serving):
    file = configuration(tmp_path, source=source)
    said = " ".join(refusal("run", file, "--set", f"method.name={name}", "--out", "here").split())
    assert f'method.name = "{name}": needs a task with {needed}, which ' in said
    found = said.partition("is served by ")[2].split(", ")
    assert {*serving} <= {*found}
    assert not any(word.startswith(other) for word in found for other in not_serving)


def parquet(folder, **columns):
    """A configuration of FedAvg on a Parquet file of ten rows."""
    name = configuration(folder, source="parquet:ten.parquet", net="linear")
    pq.write_table(pa.table({**columns, "label": ["a", "b"] * 5}), folder / "ten.parquet")
    return name


def test_lists_of_several_lengths_are_no_signal_and_the_row_is_named(tmp_path):
    """Of the fixed order, rows 7 and 9 of ten are the test half, in which the short one lies."""
    file = parquet(tmp_path, signal=[[0.5] * 4] * 9 + [[0.5] * 3])
    said = " ".join(refusal("run", file, "--out", "here").split())
    assert 'data.source = "parquet:ten.parquet"' in said
    assert "of several lengths: ten.parquet row 9 has 3 values, ten.parquet row 7 has 4" in said


@pytest.mark.parametrize(
    ("columns", "key"),
    [({}, 'data.source = "parquet:ten.parquet"'), ({"x": "x", "sound": "sound"}, 'data.columns.sound = "sound"')],
)
def test_a_modality_that_no_client_has_is_refused(tmp_path, columns, key):
    file = parquet(tmp_path, x=[[0.5]] * 10, sound=pa.array([None] * 10, pa.list_(pa.float32())))
    tree = yaml.safe_load((tmp_path / file).read_text())
    tree["data"]["columns"], tree["clients"]["net"] = columns, "two_branch"
    (tmp_path / file).write_text(yaml.safe_dump(tree))
    said = " ".join(refusal("run", file, "--out", "here").split())
    assert f"{key}: ten.parquet: no training row has a value in column 'sound'; leave this modality out" in said


def test_numbers_of_many_digits_that_are_classes_are_said_in_the_plan(tmp_path):
    text = "x,label\n" + "".join(f"{n}.5,{8589934592 if n % 2 else 7}\n" for n in range(8))
    result = tessera("plan", configuration(tmp_path, text))
    assert result.exit_code == 0, result.output
    assert "its 2 different values 7, 8589934592 are the classes" in " ".join(result.output.split())
