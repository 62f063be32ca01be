"""Files and overrides: what is no YAML, what stands twice, what cannot be put in."""

import pytest

from engine.config import load
from engine.config.reading import dump, override, parse, read
from engine.errors import ConfigError

GOOD = """
method: {name: fedavg}
data: {source: digits}
partition: {kind: iid, clients: 4}
clients: {net: mlp, steps: 2, batch: 8, lr: 1e-1}
rounds: 3
"""


def written(folder, text):
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusals(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return [str(problem) for problem in caught.value.problems]


def test_a_number_may_be_written_as_1e_1(tmp_path):
    assert load(written(tmp_path, GOOD)).clients.lr == 0.1


@pytest.mark.parametrize("text", ["1e-3", "2024-01-01", "0x1F", ".5", "~", "yes", "1_000", "12:30", "-", "a: b"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert parse(dump({"key": text}), "place") == {"key": text}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: [1,\n c: }", "line 3 column 5", "not YAML"),
        ("a: b: c", "line 1 column 5", "not YAML"),
        ("a: 1\nb: 2\n  c: 3", "line 3 column 4", "not YAML"),
        ("a: &x 1\nb: *y", "line 2 column 4", "undefined alias"),
        ("!!python/object/apply:os.system ['true']", "line 1 column 1", "could not determine a constructor"),
        (b"a: \x00", "", "not YAML"),
        (b"\xff\xfe\xfa", "", "not YAML"),
        ("a: &x [*x]", "", "may hold text, numbers"),
        ("a: !!set {b}", "", "may hold text, numbers"),
        ("- a", "", "must hold a mapping"),
        ("", "", "must hold a mapping"),
        ("[" * 1500, "", "not YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, text, where, what):
    name = written(tmp_path, text)
    (line, *_) = refusals(read, name)
    assert line.startswith(name)
    assert where in line
    assert what in line


def test_every_key_that_stands_twice_is_named(tmp_path):
    found = refusals(read, written(tmp_path, "a: 1\nc: {d: 1,\n d: 2}\na: 2"))
    assert sorted(line.partition("line ")[2] for line in found) == [
        "3 column 2: the key d stands twice in one mapping; keep one",
        "4 column 1: the key a stands twice in one mapping; keep one",
    ]


def test_a_name_that_is_nothing_brings_the_nearest_preset_and_all():
    (line,) = refusals(read, "mosaic-digit")
    assert "did you mean mosaic-digits?" in line
    assert "fedavg-mnist" in line


def test_a_folder_is_no_configuration(tmp_path):
    (line,) = refusals(read, str(tmp_path))
    assert "cannot be read: Is a directory" in line


def test_overrides_are_read_as_yaml_and_put_in_in_order():
    tree = {"clients": {"lr": 1.0}}
    found = override(tree, ["clients.lr=1e-2", "clients.net=[mlp, small_cnn]", "runner.kind=ray", "clients.lr=null"])
    assert found == {"clients": {"lr": None, "net": ["mlp", "small_cnn"]}, "runner": {"kind": "ray"}}
    assert tree == {"clients": {"lr": 1.0}}


def test_a_whole_section_can_be_replaced(tmp_path):
    config = load(written(tmp_path, GOOD), ["method={name: fedprox, mu: 2}"])
    assert config.method.settings.mu == 2.0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rounds", "must be of the form section.key=value"),
        ("=3", "must be of the form section.key=value"),
        ("a..b=3", "must be of the form section.key=value"),
        ("rounds=[", "not YAML"),
        ("rounds.x=1", "rounds = 3 has no keys below it"),
    ],
)
def test_an_override_that_cannot_be_put_in_is_refused(text, what):
    (line,) = refusals(override, {"rounds": 3}, [text])
    assert f"--set {text}" in line
    assert what in line


def test_all_wrong_overrides_are_named():
    assert len(refusals(override, {}, ["x", "y", "a=1"])) == 2


def test_a_network_whose_name_looks_like_a_number_is_refused_as_no_name(tmp_path):
    (line,) = refusals(load, written(tmp_path, GOOD), ["clients.net=8"])
    assert "clients.net = 8" in line
