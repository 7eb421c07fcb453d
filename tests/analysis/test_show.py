"""What is drawn and said: styles, sentences, parts."""

import re
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from llmdreamer.analysis import (
    plot,
    plot_run,
    sentence,
)
from llmdreamer.analysis.aggregate import Estimate
from llmdreamer.analysis.part import Part, picture, save
from llmdreamer.analysis.style import PALETTE, _spread, styles, wrap

ARMS = ["gru", "scratch", "pretrained-full", "pretrained-lora", "random-frozen-lora", "reference"]


def found(value: float, low: float, high: float, n: int = 5) -> Estimate:
    return Estimate(np.array(value), np.array(low), np.array(high), n)


def test_an_arm_looks_the_same_in_any_company():
    alone, together = styles(["gru"])["gru"], styles(ARMS)["gru"]
    assert alone == together


def test_no_two_arms_share_a_colour_or_a_line_style():
    chosen = styles(ARMS)
    assert len({style.color for style in chosen.values()}) == len(ARMS)
    assert len({str(style.dash) for style in chosen.values()}) == len(ARMS)


def test_variants_of_an_arm_share_its_colour_and_are_told_apart_by_marks():
    chosen = styles(["scratch lr=0.1", "scratch lr=0.2"])
    one, two = chosen.values()
    assert one.color == two.color and one.marker != two.marker
    assert one.name("x")[0] != two.name("x")[0]


def test_a_name_is_no_formula():
    """Matplotlib reads what stands between two dollars as one, and raises where it is none."""
    x = np.array([1.0, 2.0])
    one = Estimate(x, x - 1, x + 1, 3)
    names = [r"gru path=$HOME/\frac{$", r"scratch path=$HOME/\frac{$"]
    curves = plot.curves({"$E\\frac{$": {name: plot.Curve(x, one) for name in names}}, "x", "y")
    estimate = found(0.5, 0.4, 0.6)
    rows = [(wrap(name), estimate) for name in names]
    profiles = plot.profiles(x, dict.fromkeys(names, one), "t")
    for figure in (curves, profiles, plot.forest(rows, "x", 0.5)):
        assert picture(figure, "png")
    assert any("$HOME" in text for text in _texts(picture(plot.forest(rows, "x", 0.5), "svg")))


def _texts(svg: bytes) -> list[str]:
    """SVG draws letters as curves, and says in a comment which they are."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_names_beside_lines_keep_apart():
    places = _spread([1.0, 1.1, 1.2, 9.0], [1.0] * 4, floor=0.0, ceiling=10.0)
    assert places == pytest.approx(
        [0.5, 1.5, 2.5, 9.0]
    )  # off the floor; the last stays where it is
    places = _spread([4.0, 4.2, 9.0, 9.2], [1.0] * 4, floor=0.0, ceiling=20.0)
    assert places == pytest.approx([3.6, 4.6, 8.6, 9.6])
    # Below the ceiling, pushing down those that lay there.
    places = _spread([6.9, 9.5, 9.6, 9.7], [1.0] * 4, floor=0.0, ceiling=10.0)
    assert places == pytest.approx([6.5, 7.5, 8.5, 9.5])


def test_lines_are_dark_enough_on_white():
    for style in styles(ARMS).values():
        assert matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(style.color))[2] < 0.95


def test_an_interval_that_holds_zero_detects_nothing():
    assert sentence.of_difference("a", "b", found(2, -1, 5), 0.01) == (
        "a against b: no difference detectable at n = 5 (2.0 [-1.0, 5.0], p = 0.01)."
    )


def test_a_large_p_detects_nothing_whatever_the_interval():
    assert "no difference detectable" in sentence.of_difference("a", "b", found(2, 1, 5), 0.06)


def test_both_together_detect_and_say_which_way():
    text = sentence.of_difference("a", "b", found(-2, -3, -1), 0.01, ["lr (1, 2)"])
    assert text == (
        "a is lower than b by -2.0 [-3.0, -1.0], p = 0.01, n = 5. They also differ in lr (1, 2)."
    )


def test_few_runs_are_warned_of():
    assert "n = 3" in sentence.of_few([1, 3, 12])
    assert sentence.of_few([1, 10, 12]) == ""


def test_a_part_is_escaped_and_saved_as_text_and_pictures(tmp_path: Path):
    figure = plot_run.lines({"p": {"a": (np.arange(3.0), np.arange(3.0))}}, "steps", {"p": "unit"})
    part = Part("A <b> part", ["1 < 2"], [pd.DataFrame({"x": ["<i>"]})], {"pic": figure})
    page = part._repr_html_()
    assert "<i>" not in page and "1 &lt; 2" in page and "data:image/png;base64," in page
    assert sorted(path.name for path in save(part, tmp_path)) == [
        "a-b-part.csv",
        "pic.png",
        "pic.svg",
    ]


@pytest.mark.parametrize("points", [1, 5])
def test_a_line_is_seen_even_where_it_has_a_single_point(points: int):
    x = np.arange(float(points))
    (axis,) = plot_run.lines({"p": {"a": (x, x)}}, "steps", {"p": "unit"}).axes
    assert bool(axis.lines[0].get_marker()) == (points == 1)
    one = Estimate(x, x - 1, x + 1, 3)
    (axis,) = plot.curves({"E": {"gru": plot.Curve(x, one, [(x, x)])}}, "steps", "return").axes
    assert all(bool(line.get_marker()) == (points == 1) for line in axis.lines)


def test_names_are_dark_enough_to_be_read_where_a_line_may_be_pale():
    for style in styles([*ARMS, "PPO"]).values():
        red, green, blue = style.ink
        assert 0.299 * red + 0.587 * green + 0.114 * blue <= 0.43


def test_lines_that_are_no_arms_never_share_a_dash():
    assert len({str(dash) for _, dash in PALETTE}) == len(PALETTE) == 9
