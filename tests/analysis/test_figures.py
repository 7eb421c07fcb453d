"""Styles of figures, statements about estimates, and sections."""

import re
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from llmdreamer.analysis import (
    plot,
    plot_run,
    statements,
)
from llmdreamer.analysis.aggregate import Estimate
from llmdreamer.analysis.section import Section, render, save_section
from llmdreamer.analysis.style import PALETTE, _spread, arm_styles, wrap

ARMS = ["gru", "scratch", "pretrained-full", "pretrained-lora", "random-frozen-lora", "reference"]


def estimate(value: float, low: float, high: float, n: int = 5) -> Estimate:
    return Estimate(np.array(value), np.array(low), np.array(high), n)


def test_arm_style_does_not_depend_on_the_other_arms():
    alone, among_others = arm_styles(["gru"])["gru"], arm_styles(ARMS)["gru"]
    assert alone == among_others


def test_arms_differ_in_color_and_dashes():
    line_styles = arm_styles(ARMS)
    assert len({style.color for style in line_styles.values()}) == len(ARMS)
    assert len({str(style.dash) for style in line_styles.values()}) == len(ARMS)


def test_variants_of_an_arm_share_its_color_and_differ_in_marker():
    line_styles = arm_styles(["scratch lr=0.1", "scratch lr=0.2"])
    first, second = line_styles.values()
    assert first.color == second.color and first.marker != second.marker
    assert first.display_name("x")[0] != second.display_name("x")[0]


def test_name_with_dollar_signs_is_not_read_as_a_formula():
    """Matplotlib reads text between two dollar signs as a formula, and raises if it is not valid."""
    x = np.array([1.0, 2.0])
    curve = Estimate(x, x - 1, x + 1, 3)
    names = [r"gru path=$HOME/\frac{$", r"scratch path=$HOME/\frac{$"]
    curves = plot.curves({"$E\\frac{$": {name: plot.Curve(x, curve) for name in names}}, "x", "y")
    rows = [(wrap(name), estimate(0.5, 0.4, 0.6)) for name in names]
    profiles = plot.profiles(x, dict.fromkeys(names, curve), "t")
    for figure in (curves, profiles, plot.forest(rows, "x", 0.5)):
        assert render(figure, "png")
    assert any("$HOME" in text for text in _texts(render(plot.forest(rows, "x", 0.5), "svg")))


def _texts(svg: bytes) -> list[str]:
    """Return the texts of an SVG file: letters are curves there, with the text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_names_beside_lines_do_not_overlap():
    centers = _spread([1.0, 1.1, 1.2, 9.0], [1.0] * 4, low=0.0, high=10.0)
    assert centers == pytest.approx(
        [0.5, 1.5, 2.5, 9.0]
    )  # raised to the lower limit; the last one does not move
    centers = _spread([4.0, 4.2, 9.0, 9.2], [1.0] * 4, low=0.0, high=20.0)
    assert centers == pytest.approx([3.6, 4.6, 8.6, 9.6])
    # Kept below the upper limit, which pushes the others down.
    centers = _spread([6.9, 9.5, 9.6, 9.7], [1.0] * 4, low=0.0, high=10.0)
    assert centers == pytest.approx([6.5, 7.5, 8.5, 9.5])


def test_names_and_their_markers_stand_outside_of_the_axis():
    """The first line ends in the middle of the axis."""
    x = np.array([1.0, 2.0, 3.0])
    ends = {"scratch lr=1": x[:2], "scratch lr=2": x}
    curves = {name: plot.Curve(x, Estimate(x, x - 1, x + 1, 3)) for name, x in ends.items()}
    (axis,) = plot.curves({"E": curves}, "steps", "return").axes
    assert [text.xyann[0] > 1.0 for text in axis.texts] == [True, True]
    assert {text.anncoords for text in axis.texts} == {"axes fraction"}


def test_line_colors_are_visible_on_white():
    for style in arm_styles(ARMS).values():
        assert matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(style.color))[2] < 0.95


def test_interval_that_includes_zero_detects_no_difference():
    assert statements.difference_statement("a", "b", estimate(2, -1, 5), 0.01) == (
        "a against b: no difference detectable at n = 5 (2.0 [-1.0, 5.0], p = 0.01)."
    )


def test_large_p_detects_no_difference():
    assert "no difference detectable" in statements.difference_statement(
        "a", "b", estimate(2, 1, 5), 0.06
    )


def test_small_p_and_interval_without_zero_detect_a_difference():
    text = statements.difference_statement("a", "b", estimate(-2, -3, -1), 0.01, ["lr (1, 2)"])
    assert text == (
        "a is lower than b by -2.0 [-3.0, -1.0], p = 0.01, n = 5. They also differ in lr (1, 2)."
    )


def test_few_runs_warning_names_the_smallest_number():
    assert "n = 3" in statements.few_runs_warning([1, 3, 12])
    assert statements.few_runs_warning([1, 10, 12]) == ""


def test_section_is_escaped_and_saved_as_files(tmp_path: Path):
    figure = plot_run.metric_panels(
        {"p": {"a": (np.arange(3.0), np.arange(3.0))}}, "steps", {"p": "unit"}
    )
    section = Section("A <b> section", ["1 < 2"], [pd.DataFrame({"x": ["<i>"]})], {"pic": figure})
    page = section._repr_html_()
    assert "<i>" not in page and "1 &lt; 2" in page and "data:image/png;base64," in page
    assert sorted(path.name for path in save_section(section, tmp_path)) == [
        "a-b-section.csv",
        "pic.png",
        "pic.svg",
    ]


@pytest.mark.parametrize("points", [1, 5])
def test_line_of_a_single_point_has_a_marker(points: int):
    x = np.arange(float(points))
    (axis,) = plot_run.metric_panels({"p": {"a": (x, x)}}, "steps", {"p": "unit"}).axes
    assert bool(axis.lines[0].get_marker()) == (points == 1)
    curve = Estimate(x, x - 1, x + 1, 3)
    (axis,) = plot.curves({"E": {"gru": plot.Curve(x, curve, [(x, x)])}}, "steps", "return").axes
    assert all(bool(line.get_marker()) == (points == 1) for line in axis.lines)


def test_text_colors_are_dark_enough_to_read():
    for style in arm_styles([*ARMS, "PPO"]).values():
        red, green, blue = style.text_color
        assert 0.299 * red + 0.587 * green + 0.114 * blue <= 0.43


def test_palette_dashes_are_distinct():
    assert len({str(dash) for _, dash in PALETTE}) == len(PALETTE) == 9
