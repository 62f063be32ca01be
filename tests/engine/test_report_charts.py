"""The drawings of a report, number by number."""

import base64
import io
import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.views.report.charts import (
    Bar,
    Curve,
    Mark,
    bars,
    confusion_map,
    curves,
    holdings,
    label_map,
    legend,
    pairs,
    spread,
)
from engine.views.report.html import element, page
from engine.views.report.pictures import grid, heat


def html(node):
    return ElementTree.tostring(node, encoding="unicode", method="html")


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def line_of(node):
    """Points of the first line, in percent from the top left."""
    path = next(e for e in node.iter("path") if (e.get("class") or "").startswith("line"))
    return [tuple(map(float, point.split())) for point in path.get("d")[1:].split("L")]


def test_a_curve_runs_from_the_left_to_the_right_and_up_with_accuracy():
    # From 0 to 100 %: the scale ends at ticks, so half-way up is half-way up.
    drawn = curves([Curve("run", [(1, 0.0), (3, 0.5), (5, 1.0)])], "accuracy", "%")
    assert line_of(drawn) == [(0, 100), (50, 50), (100, 0)]
    assert re.findall(r">(\d+) %<", html(drawn)) == ["0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(7, 1.0)]])
def test_a_single_round_or_level_still_has_a_scale(points):
    places = line_of(curves([Curve("run", points)], "accuracy", "%"))
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in places)


def test_a_figure_that_is_no_share_has_an_axis_in_its_own_numbers():
    drawn = curves([Curve("run", [(1, 2000.0), (2, 12000.0)], [Mark(2, 4321.5, "teacher")])], "rmse", "mm")
    assert re.findall(r'top:[\d.]+%">([\d,]+)<', html(drawn)) == [
        "2,000",
        "4,000",
        "6,000",
        "8,000",
        "10,000",
        "12,000",
    ]
    assert ">teacher 4,322<" in html(drawn)
    assert "<title>run, round 2: 12,000 mm</title>" in html(drawn)
    assert next(drawn.iter("svg")).get("aria-label") == "rmse by round"


def test_a_narrow_axis_of_shares_has_a_different_text_at_each_tick():
    drawn = curves([Curve("run", [(1, 0.92), (2, 0.93)])], "accuracy", "%")
    assert re.findall(r">([\d.]+) %<", html(drawn)) == ["92", "92.2", "92.4", "92.6", "92.8", "93"]


def test_points_that_are_not_finite_are_left_out_and_without_others_there_is_no_chart():
    assert line_of(curves([Curve("run", [(1, 2.0), (2, np.inf), (3, 4.0), (4, np.nan)])], "perplexity", "")) == [
        (0, 100),
        (100, 0),
    ]
    assert curves([Curve("run", [(1, np.nan)])], "perplexity", "") is None


def test_the_marks_of_one_curve_are_named_on_the_paper():
    marks = [Mark(2, 0.5, "fedavg"), Mark(2, 0.75, "teacher")]
    alone = html(curves([Curve("run", [(1, 0.25), (4, 1.0)], marks)], "accuracy", "%"))
    assert ">teacher 75.0<" in alone
    assert ">fedavg 50.0<" in alone
    both = [Curve("run", [(1, 0.25), (4, 1.0)], marks), Curve("other", [(1, 0.5)])]
    beside = html(curves(both, "accuracy", "%"))
    assert ">teacher 75.0<" not in beside
    assert "<title>run, teacher, round 2: 75.0 %</title>" in beside


def test_a_seventh_curve_takes_the_first_colour_again_dashed():
    assert re.findall(r'class="(c\d[^"]*)"', html(legend(list("abcdefg"))))[-2:] == ["c5", "c0 dashed"]


@given(st.lists(st.floats(0, 100), max_size=12).map(sorted))
def test_names_are_pushed_apart_and_stay_on_the_paper(places):
    moved = spread(places, 7.0)
    assert all(later - earlier >= 7.0 - 1e-9 for earlier, later in itertools.pairwise(moved))
    assert all(place <= 100 for place in moved)


def test_names_with_room_stay_where_they_are():
    assert spread([10.0, 30.0, 37.0], 7.0) == [10.0, 30.0, 37.0]


def test_names_are_pushed_down_first_and_up_at_the_lower_edge():
    assert spread([10.0, 10.0, 12.0], 7.0) == [10.0, 17.0, 24.0]
    assert spread([98.0, 99.0], 7.0) == [93.0, 100.0]


def test_bars_are_as_long_as_their_share_of_the_largest():
    assert re.findall(r"width:([\d.]+)%", html(bars([Bar("a", 3, "3"), Bar("b", 12, "12")]))) == ["25.00", "100.00"]
    assert re.findall(r"width:([\d.]+)%", html(bars([Bar("a", 0.3, "")], whole=1.0))) == ["30.00"]
    assert re.findall(r"width:([\d.]+)%", html(bars([Bar("a", 0, "0")]))) == ["0.00"]


def test_an_amount_below_nothing_or_that_is_not_finite_has_no_length():
    rows = [Bar("a", -2.0, "-2"), Bar("b", np.inf, "inf"), Bar("c", np.nan, "-"), Bar("d", 4.0, "4"), Bar("e", 1, "1")]
    assert re.findall(r"width:([\d.]+)%", html(bars(rows))) == ["0.00", "0.00", "0.00", "100.00", "25.00"]


def order(node):
    return [e.text for e in node.iter("span") if e.get("class") == "name"]


def test_few_classes_keep_their_order_and_many_go_by_the_difference():
    names = [f"c{i}" for i in range(13)]
    before, after = np.full(13, 0.5), np.linspace(0.2, 0.8, 13)
    assert order(pairs(names[:12], before[:12], after[:12])) == names[:12]
    assert order(pairs(names, before, after)) == names[::-1]
    after[12] = np.nan
    assert order(pairs(names, before, after)) == [*names[11::-1], "c12"]


def test_a_pair_joins_both_shares_and_shows_a_loss():
    drawn = html(pairs(["cat"], np.array([0.75]), np.array([0.5])))
    assert 'class="link down" style="left:50.00%;width:25.00%"' in drawn
    assert "75 → 50" in drawn


def test_a_map_is_as_deep_as_the_root_of_the_share_of_the_largest():
    counts = np.array([[0, 4], [16, 1]])  # two clients, two classes
    source = next(label_map(counts, ["a", "b"]).iter("img")).get("src")
    alpha = pixels(base64.b64decode(source.split(",")[1]))[..., 3]
    # Rows are classes: sqrt(0 / 16), sqrt(16 / 16); sqrt(4 / 16), sqrt(1 / 16), of 255.
    assert alpha.tolist() == [[0, 255], [128, 64]]


def test_a_large_map_has_no_numbers_in_its_cells_and_names_some_rows():
    drawn = label_map(np.ones((100, 100), dtype=np.int64), [f"class {c}" for c in range(100)])
    assert not [e for e in drawn.iter("div") if e.get("class") == "counts"]
    assert 20 <= len([e for e in drawn.iter("span") if (e.text or "").startswith("class")]) <= 50


def test_a_federation_without_examples_has_an_empty_map():
    assert "img" in {e.tag for e in label_map(np.zeros((2, 2), dtype=np.int64), ["a", "b"]).iter()}


def test_a_confusion_is_as_deep_as_the_share_of_its_row():
    drawn = confusion_map(np.array([[3, 1], [0, 0]]), ["cat", "dog"])
    alpha = pixels(base64.b64decode(next(drawn.iter("img")).get("src").split(",")[1]))[..., 3]
    assert alpha.tolist() == [[191, 64], [0, 0]]  # 3/4 and 1/4 of 255, and a class without examples
    assert re.findall(r"<span[^>]*>([^<]*)</span>", html(drawn)) == ["cat", "dog", "3", "1", "", "", "cat", "dog"]


def test_a_client_without_classes_is_a_column_as_high_as_its_examples():
    drawn = holdings(np.array([[10], [40]]), ())
    # From 0 to 40, a tick: a quarter of the height and all of it.
    assert re.findall(r' height="([\d.]+)"', html(drawn)) == ["25.00", "100.00"]
    assert re.findall(r' y="([\d.]+)"', html(drawn)) == ["75.00", "0.00"]
    assert "<title>client 1: 40</title>" in html(drawn)


def test_heat_is_transparent_where_there_is_nothing():
    assert pixels(heat(np.array([[0.0, 1.0]])))[0, :, 3].tolist() == [0, 255]


def test_a_grid_puts_images_side_by_side_one_pixel_apart():
    images = np.stack([np.full((1, 2, 2), value, dtype=np.uint8) for value in (10, 20, 30)])
    sheet = pixels(grid(images, columns=2))
    assert sheet.shape == (5, 5, 4)
    assert sheet[:2, :2, 0].tolist() == [[10, 10], [10, 10]]
    assert sheet[0, 3, 0] == 20
    assert sheet[3, 0, 0] == 30
    assert sheet[2, :, 3].tolist() == [0] * 5
    assert sheet[4, 4, 3] == 0  # there is no fourth image


def test_rows_of_an_image_are_rows_of_its_picture():
    image = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    assert pixels(grid(image, 1))[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_three_channels_are_colours_and_two_are_grey():
    colour = np.array([10, 20, 30], dtype=np.uint8).reshape(1, 3, 1, 1)
    assert pixels(grid(colour, 1))[0, 0].tolist() == [10, 20, 30, 255]
    assert pixels(grid(colour[:, :2], 1))[0, 0].tolist() == [15, 15, 15, 255]


class Paragraph(HTMLParser):
    """The text of the page's only paragraph."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(markup[markup.index("<p") : markup.index("</p>")])
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.text() | st.sampled_from(["</p><script>", "&lt;", '"><img src=x>', "<!--", "]]>"]))
def test_whatever_is_put_in_as_text_comes_out_as_text(text):
    made = Paragraph(page("title", "", element("p", "before ", element("b", text), text, class_=text)).decode())
    assert made.tags == [("p", {"class": text}), ("b", {})]
    assert made.text == f"before {text}{text}"
