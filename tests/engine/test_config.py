"""A configuration: what it holds, how it round trips, and that everything wrong in it is said at once."""

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorithms.core.contract import ClientSpec
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from algorithms.methods.fedprox import FedProx
from engine.config import RunConfig, load, resolve, to_tree, to_yaml
from engine.config.reading import parse
from engine.config.schema import Section, deal
from engine.errors import MISSING, ConfigError

SMALL = {
    "method": {"name": "fedavg"},
    "data": {"source": "digits"},
    "partition": {"kind": "dirichlet", "alpha": 0.5, "clients": 4},
    "clients": {"net": "mlp", "steps": 2, "batch": 8, "lr": 0.1},
    "rounds": 3,
}


def changed(**sections):
    """SMALL with keys of its sections replaced."""
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in SMALL.items()}
    for name, value in sections.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return tree


def problems(tree):
    """Place to reason of everything that is wrong."""
    with pytest.raises(ConfigError) as caught:
        resolve(tree)
    return {problem.place: problem.reason for problem in caught.value.problems}


def test_keys_that_are_left_out_are_filled_in():
    config = resolve(SMALL)
    assert (config.seed, config.evaluate.every, config.runner.kind, config.clients.cohort) == (0, 1, "inline", None)
    assert config.method.settings.weights == "examples"
    assert set(to_tree(config)) == set(RunConfig.model_fields)


def test_the_fields_of_a_method_are_those_of_its_config():
    config = resolve(changed(method={"name": "fedprox", "mu": 0.5}))
    assert config.method.settings == FedProx.Config(mu=0.5)
    assert config.method.type is FedProx


def test_every_key_is_described():
    def undescribed(model, place):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{place}{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from undescribed(field.annotation, f"{place}{name}.")

    assert list(undescribed(RunConfig, "")) == []


def test_clients_work_as_the_section_says():
    work = resolve(changed(clients={"momentum": 0.9, "clip": 1.0})).clients.work(rounds=1)
    assert work == Work(steps=2, epochs=None, batch=8, lr=0.1, momentum=0.9, weight_decay=0.0, clip=1.0)
    settings = {"optimiser": "adamw", "betas": [0.8, 0.9], "eps": 0.1, "label_smoothing": 0.2}
    schedule = {"name": "step", "warmup": 1, "every": 2, "factor": 0.5}
    given = resolve(changed(clients={**settings, "schedule": schedule})).clients.work(rounds=7)
    assert (given.optimiser, given.betas, given.eps, given.label_smoothing) == ("adamw", (0.8, 0.9), 0.1, 0.2)
    assert given.schedule == RateSchedule("step", rounds=7, warmup=1, every=2, factor=0.5)


def test_networks_are_dealt_in_turn_or_in_blocks():
    assert deal("mlp", 3) == ["mlp", "mlp", "mlp"]
    assert deal(("mlp", "small_cnn"), 3) == ["mlp", "small_cnn", "mlp"]
    assert deal({"mlp": 2, "small_cnn": 1}, 3) == ["mlp", "mlp", "small_cnn"]
    specs = resolve(changed(clients={"net": ["mlp", "small_cnn"]})).clients.specs(2, Seed(0))
    assert specs == (ClientSpec(0, "mlp"), ClientSpec(1, "small_cnn"))


def widths(value, clients=4, seed=0):
    """The clients' widths at the start, and those drawn from in every round."""
    section = resolve(changed(clients={"width": value})).clients
    return [client.width for client in section.specs(clients, Seed(seed))], section.redrawn()


def test_widths_are_one_for_all_or_dealt_in_turn():
    assert widths(0.5) == ([0.5] * 4, ())
    assert widths([1, 0.5, 0.25]) == ([1.0, 0.5, 0.25, 1.0], ())
    assert resolve(SMALL).clients.specs(1, Seed(0)) == (ClientSpec(0, "mlp", 1.0),)


def test_widths_drawn_once_depend_on_the_seed_and_the_client():
    choices = {"from": [1, 0.5, 0.25], "drawn": "once"}
    drawn, redrawn = widths(choices, clients=60)
    assert set(drawn) == {1.0, 0.5, 0.25}
    assert redrawn == ()
    assert widths(choices, clients=60) == (drawn, redrawn)
    assert widths(choices, clients=60, seed=1) != (drawn, redrawn)
    assert widths(choices, clients=9)[0] == drawn[:9]


def test_widths_drawn_in_every_round_are_left_to_the_rounds():
    assert widths({"from": [1, 0.5], "drawn": "every round"}) == ([1.0] * 4, (1.0, 0.5))


@pytest.mark.parametrize("width", [0.5, [1, 0.5], {"from": [1, 0.5], "drawn": "once"}])
def test_widths_are_written_as_they_were_read(width):
    assert to_tree(resolve(changed(clients={"width": width})))["clients"]["width"] == width


def test_everything_wrong_is_said_together():
    found = problems(
        changed(
            method={"wieghts": "uniform"},
            partition={"alpha": 0, "clients": 4},
            clients={"cohort": 9, "lr": "fast", "epochs": 1},
            rounds=2.5,
            privacy={"forbid": "raw"},
            runner={"hosts": 2},
            alpha=1,
        )
    )
    assert set(found) == {
        "method.wieghts",
        "partition.alpha",
        "clients",
        "clients.cohort",
        "clients.lr",
        "rounds",
        "privacy.forbid",
        "runner.hosts",
        "alpha",
    }


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"partition": {"alpha": 0}}, "partition.alpha", "must be larger than 0"),
        ({"partition": {"alpha": -1.5}}, "partition.alpha", "must be larger than 0"),
        ({"clients": {"lr": "fast"}}, "clients.lr", "must be a number"),
        ({"clients": {"lr": float("nan")}}, "clients.lr", "must be"),
        ({"clients": {"batch": True}}, "clients.batch", "must be a whole number"),
        ({"clients": {"batch": 8.0}}, "clients.batch", "must be a whole number"),
        ({"clients": {"batch": "8"}}, "clients.batch", "must be a whole number"),
        ({"clients": {"momentum": 1}}, "clients.momentum", "must be less than 1"),
        ({"clients": {"cohort": 5}}, "clients.cohort", "at most partition.clients = 4"),
        ({"clients": {"bacth": 3}}, "clients.bacth", "unknown key; did you mean batch?"),
        ({"batch": 3}, "batch", "did you mean clients.batch?"),
        ({"clients": {"net": 3}}, "clients.net", "a network's name, a list of names"),
        ({"clients": {"net": []}}, "clients.net", "a network's name, a list of names"),
        ({"clients": {"net": {"mlp": 0}}}, "clients.net", "a mapping from name to a number of clients"),
        ({"clients": {"net": {"mlp": 3}}}, "clients.net", "must sum to partition.clients = 4"),
        ({"clients": {"width": 0}}, "clients.width", "a fraction above 0 and at most 1"),
        ({"clients": {"width": True}}, "clients.width", "a fraction above 0 and at most 1"),
        ({"clients": {"width": [1, 1.5]}}, "clients.width", "a list of such fractions dealt to the clients in turn"),
        ({"clients": {"width": []}}, "clients.width", "dealt to the clients in turn"),
        ({"clients": {"width": {"from": [0.5]}}}, "clients.width", "{from: LIST, drawn: every round}"),
        ({"clients": {"width": {"from": [0.5], "drawn": "never"}}}, "clients.width", "{from: LIST, drawn: once}"),
        ({"clients": {"steps": None}}, "clients", "either steps or epochs"),
        ({"clients": {"epochs": 2}}, "clients", "either steps or epochs"),
        ({"rounds": 0}, "rounds", "must be at least 1"),
        ({"seed": -1}, "seed", "must be at least 0"),
        ({"method": {"name": "fedvag"}}, "method.name", "did you mean fedavg?"),
        ({"method": {"name": None}}, "method.name", "must name a method"),
        ({"method": 3}, "method", "a mapping that names a method"),
        ({"method": {"weights": "all"}}, "method.weights", "must be one of examples, uniform"),
        ({"method": {"name": "fedprox", "mu": -1}}, "method.mu", "must be at least 0"),
        ({"runner": {"kind": "rya"}}, "runner.kind", "must be one of inline, ray; did you mean ray?"),
        ({"runner": {"address": "auto"}}, "runner.address", "set runner.kind: ray"),
        ({"runner": {"placement": "pooled"}}, "runner.placement", "set runner.kind: ray"),
        ({"runner": {"kind": "ray", "placement": "dedicated", "hosts": 2}}, "runner.hosts", "for pooled placement"),
        ({"runner": {"gpus": 0.5}}, "runner.gpus", "set runner.device: cuda"),
        ({"runner": {"bits": "portable", "device": "cuda"}}, "runner.bits", "or set runner.device: cpu"),
        ({"runner": {"distillation": {"gpus": 0.5}}}, "runner.distillation.gpus", "set runner.device: cuda"),
        ({"runner": {"distillation": {"trainers": 0}}}, "runner.distillation.trainers", "must be at least 1"),
        ({"privacy": {"forbid": [1]}}, "privacy.forbid.0", "must be text"),
        ({"data": {"source": "digit"}}, "data.source", "digits"),
        ({"task": {"name": "texts", "lenght": 3}}, "task.lenght", "did you mean length? known here are vocabulary, "),
        ({"task": {"name": "signals", "rate": 3}}, "task.rate", "unknown key; none is known here"),
        ({"task": {"name": "imags"}}, "task.name", "did you mean images?"),
        ({"task": {"name": "nowhere:Task"}}, "task.name", "ModuleNotFoundError: No module named 'nowhere'"),
        ({"data": 1}, "data", "must be a mapping"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(change, place, words):
    found = problems(changed(**change))
    assert list(found) == [place]
    assert words in found[place]


OF_ADAM = "is a setting of adam and adamw, but clients.optimiser is sgd, which has momentum; leave it out, or set"
OF_SGD = "is a setting of sgd, but clients.optimiser is adamw, which has betas and eps; leave it out, or set"
OF_STEP = "is a setting of step, but clients.schedule.name is cosine; leave it out"
PLAIN = "is for sgd on the plain loss of whole mini-batches, but {} = {}; set it false, and clients train one by one"


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        ({"optimiser": "rmsprop"}, {"optimiser": "must be one of sgd, adam, adamw"}),
        ({"optimiser": "adamw", "momentum": 0.9, "lr": 0}, {"momentum": OF_SGD, "lr": "must be larger than 0"}),
        ({"betas": [0.9, 0.99], "eps": 0.1, "cohort": 9}, {"betas": OF_ADAM, "eps": OF_ADAM, "cohort": "at most"}),
        ({"optimiser": "adam", "nesterov": True}, {"nesterov": "unknown key; known here are net, "}),
        ({"optimiser": "adam", "betas": [0.9]}, {"betas": "two numbers, each at least 0 and less than 1"}),
        ({"optimiser": "adam", "betas": [0.9, 1], "momentum": 0.5}, {"betas": "less than 1", "momentum": "of sgd"}),
        ({"schedule": "cosine"}, {"schedule": "must be a mapping"}),
        ({"schedule": {"name": "linear"}}, {"schedule.name": "must be one of constant, step, cosine"}),
        (
            {"schedule": {"name": "step", "every": 2}},
            {"schedule.factor": "is needed where clients.schedule.name is step"},
        ),
        (
            {"schedule": {"name": "step", "factor": 1.5}},
            {"schedule.factor": "at most 1", "schedule.every": "is needed"},
        ),
        ({"schedule": {"name": "cosine", "every": 2}}, {"schedule.every": OF_STEP}),
        ({"schedule": {"name": "cosine", "falls": [2]}}, {"schedule.falls": OF_STEP}),
        ({"schedule": {"name": "step", "every": 2, "falls": [2], "factor": 0.1}}, {"schedule.every": "leave one out"}),
        ({"schedule": {"name": "step", "falls": [], "factor": 0.1}}, {"schedule.falls": ""}),
        ({"schedule": {"warmup": 4}}, {"schedule.warmup": "must be at most rounds = 3, or lr is never reached"}),
        ({"label_smoothing": 1}, {"label_smoothing": "must be less than 1"}),
        ({"stack": True, "optimiser": "adam"}, {"stack": PLAIN.format("clients.optimiser", "adam")}),
        ({"stack": True, "micro_batch": 4}, {"stack": PLAIN.format("clients.micro_batch", 4)}),
        ({"micro_batch": 0}, {"micro_batch": "must be at least 1"}),
        ({"stack": True, "label_smoothing": 0.1}, {"stack": PLAIN.format("clients.label_smoothing", "0.1")}),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_the_optimiser_or_the_schedule_are_refused_with_all_else(clients, expected):
    found = problems(changed(clients=clients))
    assert found.keys() == {f"clients.{place}" for place in expected}
    for place, words in expected.items():
        assert words in found[f"clients.{place}"]


@pytest.mark.parametrize("section", ["method", "task"])
@pytest.mark.parametrize(
    ("module", "words"),
    [("class Mine: pass", "is not a class"), ("{}['a']", "KeyError: 'a'"), ("x = = 1", "SyntaxError: invalid syntax")],
)
def test_a_module_of_ones_own_that_cannot_be_imported_is_said_at_its_name(
    tmp_path, monkeypatch, section, module, words
):
    (tmp_path / "broken_module.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    found = problems(changed(**{section: {"name": "broken_module:Mine"}}))
    assert words in found[f"{section}.name"]


def test_a_missing_section_is_named_with_its_meaning():
    found = problems({"method": {"name": "fedavg"}, "rounds": 1, "clients": {"net": "mlp", "steps": 1}})
    assert found["partition"] == "is needed: how the training examples are dealt to clients"
    assert found["clients.lr"] == "is needed: learning rate of local training, before the schedule"
    assert set(found) == {"data", "partition", "clients.batch", "clients.lr"}


def test_the_message_shows_place_value_and_remedy_on_one_line_each():
    with pytest.raises(ConfigError) as caught:
        resolve(changed(clients={"cohort": 9, "lr": -1}))
    assert str(caught.value).splitlines() == [
        "The configuration cannot be run, for 2 reasons:",
        "  clients.lr = -1: must be larger than 0",
        "  clients.cohort = 9: must be at most partition.clients = 4, or null for all",
    ]


def test_a_long_value_is_cut():
    (line,) = (p for p in problems_of(changed(clients={"lr": "x" * 500})) if p.place == "clients.lr")
    assert len(str(line)) < 200


def problems_of(tree):
    with pytest.raises(ConfigError) as caught:
        resolve(tree)
    return caught.value.problems


def test_what_is_missing_has_no_value():
    (problem,) = problems_of({k: v for k, v in SMALL.items() if k != "rounds"})
    assert problem.value is MISSING
    assert str(problem) == "rounds: is needed: number of rounds"


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
numbers = st.floats(min_value=1e-12, max_value=1e12, allow_nan=False)


@st.composite
def trees(draw):
    """Configurations that are right."""
    clients = draw(st.integers(1, 50))
    work = draw(st.sampled_from([{"steps": 3}, {"epochs": 2}]))
    nets = draw(st.one_of(words, st.lists(words, min_size=1, max_size=3), st.just({"mlp": clients})))
    return {
        "method": draw(st.sampled_from([{"name": "fedavg"}, {"name": "fedprox", "mu": 1e-05}, {"name": "mosaic"}])),
        "data": {"source": "digits"},
        "task": draw(
            st.none()
            | st.fixed_dictionaries({"name": st.just("images"), "crop": st.integers(0, 4), "flip": st.booleans()})
        ),
        "partition": {"kind": "dirichlet", "alpha": draw(numbers), "clients": clients},
        "clients": {
            "net": nets,
            "cohort": draw(st.none() | st.integers(1, clients)),
            "batch": draw(st.integers(1, 10**6)),
            "lr": draw(numbers),
            "clip": draw(st.none() | numbers),
            **work,
        },
        "rounds": draw(st.integers(50, 10**9)),
        "seed": draw(st.integers(0, 2**70)),
        "runner": {"kind": "ray", "address": draw(st.none() | words)},
        "mlflow": {"enabled": draw(st.booleans()), "tracking_uri": draw(st.none() | words)},
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_a_configuration_comes_back_from_its_yaml_as_it_was(tree):
    config = resolve(tree)
    text = to_yaml(config)
    assert resolve(parse(text, "written")) == config
    assert parse(text, "written") == to_tree(config)


def test_a_written_configuration_is_a_file_to_run(tmp_path):
    config = resolve(SMALL)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(str(tmp_path / "config.yaml")) == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        resolve(SMALL).clients.lr = 3.0
