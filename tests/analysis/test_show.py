"""What is drawn and said: styles, sentences, parts, the look inside, published curves, studies."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import optuna
import pandas as pd
import pytest
from recorded import EXPERIMENT, Recorded

from llmdreamer.analysis import (
    inside,
    openloop,
    plot,
    plot_run,
    plot_study,
    published,
    sentence,
    study,
)
from llmdreamer.analysis.aggregate import Estimate
from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.analysis.part import Part, picture, save
from llmdreamer.analysis.style import PALETTE, _spread, styles, wrap
from llmdreamer.openloop import FILE, Errors, Example, OpenLoop

ROOT = Path(__file__).parents[2]
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


def test_the_inside_shows_what_was_recorded_and_says_what_was_not(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT)
    curves = records.curves[records.curves["key"] != "behavior/policy_entropy"]
    records = replace(records, curves=curves)
    run_id = recorded.run_id("small_gru_0")
    part, imagined = inside.everything(records, run_id)
    assert part.text[-1] == "Not recorded in this run: policy entropy, time split."
    assert imagined.text[0].startswith("Not shown: no open_loop.npz in ")
    axes = {axis.get_title(loc="left"): axis for axis in part.figures["inside"].axes}
    loss = recorded.curve("small_gru_0", "behavior/return_scale")
    (line,) = axes["Return normaliser"].lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == loss
    ratio = {line.get_label(): line.get_ydata() for line in axes["Replay ratio held"].lines}
    assert set(ratio["asked for"]) == {0.2}


def test_a_stage_that_took_no_time_is_a_zero_in_the_split(records: Records):
    """It is not logged then, and a line between the rows that have it would say that it went on."""
    run_id = records.runs["run_id"].iloc[0]
    shares = {"time/imagination_share": [0.5, 0.6, 0.7], "time/evaluation_share": [None, 0.3, None]}
    rows = [
        {"run_id": run_id, "key": key, "env_step": step, "value": value, "seconds": 0.0}
        for key, values in shares.items()
        for step, value in zip((10, 20, 30), values, strict=True)
        if value is not None
    ]
    part, _ = inside.everything(Records("", records.runs, pd.DataFrame(rows)), run_id)
    (axis,) = part.figures["inside"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["time/evaluation_share"] == [[10, 0], [20, 0.3], [30, 0]]


def test_a_run_that_does_not_say_what_ratio_it_asked_for_shows_the_one_it_held(records: Records):
    run_id = records.runs["run_id"].iloc[0]
    row = {"run_id": run_id, "key": "replay/ratio", "env_step": 1, "value": 0.5, "seconds": 0.0}
    runs = records.runs.assign(replay_ratio="unknown")
    part, _ = inside.everything(Records("", runs, pd.DataFrame([row])), run_id)
    assert len(part.figures["inside"].axes[0].lines) == 1


def test_what_a_run_foretold_is_found_among_its_artifacts(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT)
    run_id = recorded.run_id("small_gru_1")
    (place,) = records.runs.set_index("run_id").loc[[run_id], "artifacts"]
    folder = Path(place.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    foretold().save(folder / FILE)
    try:
        _, errors, examples = inside.everything(records, run_id)
    finally:
        (folder / FILE).unlink()
    assert errors.title == "Prediction error by horizon"
    assert list(errors.figures) == ["prediction-error"] and len(examples.figures) == 2


def foretold() -> OpenLoop:
    rng = np.random.default_rng(0)
    values = np.array([0.5, 1.0, 1.5])
    errors = {
        "vector/state": Errors(values, np.array([1.0, 1.2, 1.4]), np.array([0.1, 0.1, 0.1])),
        "image/camera": Errors(values, 2 * values, values / 2),
        "reward": Errors(np.full(3, np.nan), values, values),
        "continue": Errors(np.ones(3), np.ones(3), np.ones(3)),
    }
    picture = rng.integers(0, 255, (5, 16, 16, 3), np.uint8)
    examples = {
        "vector/state": Example(rng.normal(size=(5, 8)), np.zeros((5, 8)), np.ones((4, 3, 8))),
        "image/camera": Example(picture, picture, np.stack([picture[2:]] * 2)),
    }
    return OpenLoop(2, np.array([9, 9, 7]), errors, examples)


def test_errors_by_horizon_are_told_drawn_and_tabulated():
    part = openloop.errors(foretold())
    assert part.text == [
        "Imagining is better than repeating what was last seen: vector/state: 2 steps ahead; "
        "image/camera: 3 steps ahead; reward: not even 1 step ahead.",
        "9 windows of experience; 7 of their episodes go on to the end.",
    ]
    (table,) = part.tables
    assert list(table["vector/state imagined"]) == ["0.5", "1", "1.5"]
    assert list(table["reward imagined"]) == ["", "", ""]
    axes = {axis.get_title(loc="left"): axis for axis in part.figures["prediction-error"].axes}
    assert list(axes["vector/state"].lines[0].get_ydata()) == [0.5, 1.0, 1.5]
    assert len(axes["reward"].lines) == 2  # what could not be compared is not drawn


def test_examples_show_the_numbers_that_vary_most_and_a_strip_of_pictures():
    part = openloop.examples(foretold())
    assert list(part.figures) == ["imagined-state", "imagined-camera"]
    assert "state: 6 of 8 numbers, those that vary most." in part.text
    axis = part.figures["imagined-state"].axes[0]
    assert [line.get_label() for line in axis.lines[:3]] == [
        "imagined: median",
        "imagined: one of them",
        "observed",
    ]
    # From the last row that was seen, as decoded, to what was imagined.
    assert list(axis.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert list(axis.lines[0].get_ydata()) == [0, 1, 1, 1]
    assert len(part.figures["imagined-camera"].axes) == 3 * 5


def test_adapters_are_shown_by_block(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT, [RETURN])
    run_id = recorded.run_id("small_gpt2_0")
    rows = [
        {"run_id": run_id, "key": f"lora/h.{n}.attn.c_attn", "env_step": t, "value": n + t / 10}
        for n in range(11)
        for t in (1, 2)
    ]
    curves = pd.DataFrame(rows).assign(seconds=0.0)
    _, part, _ = inside.everything(Records("", records.runs, curves), run_id)
    assert part.title == "LoRA weight norms by layer"
    assert part.tables[0]["layer"].iloc[-1] == "h.10.attn.c_attn"
    (axis,) = part.figures["lora-norms"].axes
    assert list(axis.lines[1].get_xdata()) == list(range(11))
    np.testing.assert_allclose(axis.lines[1].get_ydata(), np.arange(11) + 0.2)


def test_the_newest_run_is_looked_into_unless_one_is_named(records: Records):
    newest = records.runs.sort_values("started")["run_id"].iloc[-1]
    assert inside.choose(records, None) == newest
    assert inside.choose(records, "no such") is None
    (part,) = inside.everything(records, "no such")
    assert "No run's id or name begins with 'no such'." in part.text[0]


def test_environments_are_found_by_the_names_of_published_tasks():
    for env in ("dmc:cartpole-balance", "dm_control/cartpole-balance-v0", "cartpole_balance"):
        assert published.task_of(env) == "cartpole_balance"


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    return published.read_published(ROOT / "analysis" / "data" / "dmc_proprio.csv")


def test_the_published_table_is_whole(curves: pd.DataFrame):
    assert len(curves) == 17_549
    assert curves.groupby("method")["task"].nunique().to_dict() == {
        "d4pg": 18,
        "dmpo": 18,
        "dreamerv3": 18,
        "ppo_fixhp": 18,
    }
    assert set(curves.groupby(["method", "task"])["seed"].nunique()) == {5}


def test_published_curves_stand_alone_where_the_store_has_none(
    records: Records, curves: pd.DataFrame
):
    part = published.against_published(records, curves)
    assert any("shown alone" in line for line in part.text)
    assert len([a for a in part.figures["against-published"].axes if a.get_title(loc="left")]) == 4


def test_our_curves_lie_over_the_published_ones(curves: pd.DataFrame):
    runs = pd.DataFrame(
        [
            {"run_id": str(s), "label": "scratch", "env": "dmc:cartpole-balance", "seed": s}
            for s in (0, 1)
        ]
    )
    points = [
        {"run_id": str(s), "key": RETURN, "env_step": step, "seconds": 0.0, "value": 100.0 + s}
        for s in (0, 1)
        for step in (20_000, 60_000)
    ]
    part = published.against_published(Records("", runs, pd.DataFrame(points)), curves)
    (axis,) = part.figures["against-published"].axes
    names = {text.get_text() for text in axis.texts}
    assert {"scratch (ours, n=2)", "DreamerV3 (n=5)"} <= names
    assert axis.get_xlim()[1] < 70_000  # as far as our runs go


def test_a_study_is_drawn_and_its_trials_counted(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/optuna.db"
    made = optuna.create_study(storage=storage, study_name="s")
    made.set_user_attr("llmdreamer", {"value": {"objective": "eval/return"}})
    for x in range(4):
        trial = made.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(float(x), 0)
        state = optuna.trial.TrialState.PRUNED if x == 3 else optuna.trial.TrialState.COMPLETE
        made.tell(trial, None if x == 3 else float(x), state=state)
    parts = study.everything(storage)
    assert parts[0].text == [
        "Study s: 3 COMPLETE, 1 PRUNED.",
        "Of 3 complete trials, importances are a hint at most.",
    ]
    figures = {name: figure for part in parts for name, figure in part.figures.items()}
    assert set(figures) == {
        *("study-history", "study-slices", "study-parallel-coordinates"),
        *("study-intermediate-values", "study-importances", "study-timeline"),
    }
    (axis,) = figures["study-history"].axes
    assert axis.get_ylabel() == "eval/return"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["complete"] == [[0, 0], [1, 1], [2, 2]] and drawn["pruned"] == [[3, 3]]
    # A study minimises unless it is told not to.
    assert drawn["best so far"] == [[0, 0], [1, 0], [2, 0]]
    (axis,) = figures["study-intermediate-values"].axes
    assert [line.get_marker() for line in axis.lines].count("v") == 1  # the pruned one


def test_the_study_of_a_sweep_is_found_by_its_folder(tmp_path: Path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")
    for named in (tmp_path, tmp_path / "study.db"):
        assert study.everything(str(named))[0].text == ["Study s: no trials yet."]
    (tmp_path / "empty").mkdir()
    (part,) = study.everything(str(tmp_path / "empty"))
    assert part.text == [f"there is no study: no file {tmp_path}/empty/study.db"]


def test_of_several_objectives_the_front_is_those_that_none_beats(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/optuna.db"
    made = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    for values in ([1.0, 1.0], [2.0, 3.0], [0.5, 2.0]):  # the last is worse in both than the first
        made.tell(made.ask(), values)
    found = {
        name: figure for part in study.everything(storage) for name, figure in part.figures.items()
    }
    (axis,) = found["study-pareto-front"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"Pareto front": [[1, 1], [2, 3]], "trial": [[0.5, 2]]}


def test_ends_of_trials_are_told_apart_without_colour():
    looks = plot_study._ENDS.values()
    assert len({marker for marker, _, _ in looks}) == len({hatch for _, _, hatch in looks}) == 4


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


def test_no_study_is_a_sentence_and_no_file(tmp_path: Path):
    (part,) = study.everything(f"sqlite:///{tmp_path}/none.db")
    assert part.text == [f"there is no study: no file {tmp_path}/none.db"]
    assert not (tmp_path / "none.db").exists()
