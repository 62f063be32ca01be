"""Names of classes in any script in the partition's picture."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager

from engine.partition import lettering
from engine.partition.lettering import Lettering
from engine.partition.picture import label_map

USUAL = "DejaVu Sans"
OTHER = "\N{LATIN SMALL LETTER K WITH PALATAL HOOK}"
"""A letter that is not in matplotlib's usual font but in STIXGeneral, which it brings along."""

CAT = "猫"
"""Absent from every font that matplotlib brings along; no font of the machine is looked at here."""


@pytest.fixture(autouse=True)
def fonts_of_matplotlib(monkeypatch):
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


def names_in_the_picture(names):
    """The labels that are drawn; a letter without a font is a warning, and an error here."""
    figure = label_map(np.ones((2, len(names)), np.int64), names, "iid")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_letters_of_the_usual_font_need_no_other():
    assert Lettering.of(["Katze", "γάτα", "кот"]).families == (USUAL,)
    assert names_in_the_picture(["Katze", "γάτα", "кот"]) == ["Katze", "γάτα", "кот"]


def test_another_font_is_taken_where_it_has_what_the_usual_one_lacks():
    assert Lettering.of(["Katze", OTHER]).families == (USUAL, "STIXGeneral")
    assert names_in_the_picture(["Katze", OTHER]) == ["Katze", OTHER]


def test_letters_that_no_font_has_are_shown_by_their_numbers_and_not_as_boxes():
    assert names_in_the_picture(["Katze", CAT, f"{OTHER}{CAT}"]) == ["Katze", r"\u732b", rf"{OTHER}\u732b"]


@pytest.mark.parametrize(("length", "drawn"), [(3, "abc"), (8, "abc"), (9, r"abc\u732b"), (14, r"abc\u732bd")])
def test_a_number_is_not_cut_in_two(length, drawn):
    assert Lettering.of(["abc"]).excerpt(f"abc{CAT}d{CAT}", length) == drawn


def test_a_font_file_that_is_gone_has_no_letters(tmp_path):
    assert lettering._letters(str(tmp_path / "gone.ttf")) == frozenset()
