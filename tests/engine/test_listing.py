"""What the list says of methods, which is what they answer themselves."""

import pytest

from actors.steps.orders import find_method, method_names
from engine.commands.listing import describe_method, heterogeneity, lines

WIDTHS = {"fedrolex", "heterofl", "dfrd", "mosaic", "pfedlora"}
NETWORKS = {"dense", "co_boosting", "feddf", "mosaic", "pfedlora"}
SAME_FEATURES = {"fedgen"}
PERSONAL = {"fedbn", "pfedlora"}


ADAPTERS = {name for name in method_names() if "adapters" in find_method(name).task_traits}


@pytest.mark.parametrize("name", sorted(set(method_names()) - WIDTHS - NETWORKS - SAME_FEATURES - ADAPTERS))
def test_a_method_that_averages_whole_networks_serves_label_skew(name):
    assert set(heterogeneity(find_method(name))) - {"personal models"} == {"label skew"}


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_method_on_adapters_serves_language_models(name):
    found = set(heterogeneity(find_method(name)))
    assert {"language models with adapters"} <= found
    assert ("personal models" in found) == find_method(name).personal


@pytest.mark.parametrize("name", sorted(WIDTHS | NETWORKS | SAME_FEATURES | PERSONAL))
def test_a_method_serves_what_its_paper_serves(name):
    assert set(heterogeneity(find_method(name))) == {
        "label skew",
        *(["widths of one network"] if name in WIDTHS else []),
        *(["unrelated networks"] if name in NETWORKS else []),
        *(["unrelated networks with features of one size"] if name in SAME_FEATURES else []),
        *(["personal models"] if name in PERSONAL else []),
    }


def test_what_must_be_set_for_unrelated_networks_is_said():
    found = heterogeneity(find_method("mosaic"))["unrelated networks"]
    assert found == {"student": "NET", "meta_data": "images", "conditional": True}
    assert heterogeneity(find_method("dense"))["unrelated networks"] == {"student": "NET"}


def test_a_person_reads_paper_kinds_and_heterogeneity():
    sections = ("nets", "data", "partitions", "shifts", "presets", "comparisons")
    described = {"methods": [describe_method("mosaic")], **{section: {} for section in sections}}
    assert list(lines(described))[:4] == [
        "method mosaic: Mosaic, 2025, arXiv 2505.19699",
        "    leaves a client: generator, label_counts, prototypes, weights",
        "    goes to clients: weights",
        "    serves: label skew; widths of one network; "
        "unrelated networks (conditional: true, meta_data: images, student: NET)",
    ]
