"""The budget of a run: what a method does on the server where its settings do not say."""

import json

import pytest

from actors.steps.orders import find_method, method_names
from engine.compare.spec import comparison_of
from engine.config import resolve, to_tree
from engine.config.budget import budget_fact, values_of_budget
from tests.engine.test_config import changed, problems

DENSE = find_method("dense")
LAPTOP = DENSE.budgets["laptop"]


def of(budget, **settings):
    return resolve(changed(method={"name": "dense", **settings}, budget=budget))


def test_without_a_budget_a_method_does_what_its_paper_does():
    assert resolve(changed(method={"name": "dense"})).method.settings == DENSE.Config() == of("paper").method.settings
    assert DENSE.Config().epochs == 200


def test_a_laptop_s_budget_sets_what_the_method_declares_and_nothing_else():
    assert of("laptop").method.settings == DENSE.Config(**LAPTOP)
    assert LAPTOP["epochs"] < 200


def test_what_is_set_explicitly_stands_the_paper_s_own_value_too():
    config = of("laptop", epochs=200, latent=5)
    assert (config.method.settings.epochs, config.method.settings.latent) == (200, 5)
    assert config.method.settings.generator_steps == LAPTOP["generator_steps"]
    assert values_of_budget(config) == {key: value for key, value in LAPTOP.items() if key not in ("epochs", "latent")}


def test_a_budget_leaves_methods_alone_that_make_nothing_on_the_server():
    config = resolve(changed(budget="laptop"))
    assert config.method == resolve(changed()).method
    assert (values_of_budget(config), budget_fact(config)) == ({}, {})


def test_a_resolved_configuration_keeps_its_values_whatever_its_budget_says():
    tree = to_tree(of("laptop"))
    assert resolve({**tree, "budget": "paper"}).method == resolve(tree).method == of("laptop").method


def test_an_unknown_budget_and_an_unknown_method_are_refused_together():
    found = problems(changed(method={"name": "dens"}, budget="phone"))
    assert "there are" in found["method.name"]
    assert "'laptop'" in found["budget"] or "laptop" in found["budget"]


@pytest.mark.parametrize("name", [name for name in method_names() if find_method(name).budgets])
def test_a_method_s_budgets_are_settings_of_its_own(name):
    method = find_method(name)
    for budget, values in method.budgets.items():
        resolve(changed(method={"name": name, **json.loads(json.dumps(values))}, clients={"net": "small_cnn"}))
        assert budget in ("laptop", "paper")
        assert values.keys() <= set(method.Config.__dataclass_fields__)


def test_methods_that_make_images_on_the_server_have_a_laptop_s_budget():
    assert {name for name in method_names() if "laptop" in find_method(name).budgets} == {
        "dense", "co_boosting", "feddf", "dfrd", "fedftg", "mosaic"
    }  # fmt: skip


def test_the_comparison_on_digits_holds_them_all_to_a_laptop_s_budget():
    asked = ["dense", "co_boosting", "feddf", "dfrd", "fedftg", "mosaic"]
    comparison = comparison_of(asked, "digits", (), 1)
    for cell in comparison.cells:
        assert values_of_budget(cell.config) == find_method(cell.label).budgets["laptop"]
    assert comparison_of(["dense"], "digits", ["budget=paper"], 1).cells[0].config.method.settings == DENSE.Config()
