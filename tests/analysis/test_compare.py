"""The tables and figures against numbers that NumPy computes from the runs' files."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from recorded import EXPERIMENT, Recorded

from llmdreamer.analysis import compare
from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.analysis.scores import scores
from llmdreamer.analysis.section import render

SMALL = {arm: [f"small_{arm}_{seed}" for seed in range(3)] for arm in ("gru", "gpt2")}


@pytest.fixture(scope="module")
def jobs(recorded: Recorded) -> Records:
    """The six runs of the sweep: two arms, three seeds."""
    return load(recorded.uri, EXPERIMENT, parent=recorded.parent)


def last_returns(recorded: Recorded, arm: str) -> list[float]:
    return [recorded.curve(name, RETURN)[-1][1] for name in SMALL[arm]]


def test_scores_are_the_last_evaluations(recorded: Recorded, jobs: Records):
    (group,) = scores(jobs)
    assert group.labels == ["gru", "scratch"]
    assert sorted(group.arm("gru")[0]) == sorted(last_returns(recorded, "gru"))
    assert sorted(group.arm("scratch")[0]) == sorted(last_returns(recorded, "gpt2"))


def test_table_holds_n_and_the_interquartile_mean(recorded: Recorded, jobs: Records):
    (table,) = compare.table(jobs).tables
    assert list(table["n"]) == [3, 3]
    for row, arm in zip(table.to_dict("records"), ("gru", "gpt2"), strict=True):
        expected = scipy.stats.trim_mean(last_returns(recorded, arm), 0.25)
        assert row["IQM of return [95%]"].startswith(f"{expected:.1f} [")
        assert "n = 3 runs, 3 seeds" in row["statement"]


def test_table_matches_numpy_on_a_store_with_failed_and_resumed_runs(
    recorded: Recorded, records: Records
):
    """Unfinished runs are left out, a resumed run counts once, and of repeated runs the newest counts."""
    rows = {
        row["arm"]: row
        for table in compare.table(records).tables[:1]
        for row in table.to_dict("records")
    }
    small = {"gru": [*SMALL["gru"], "resumed"], "scratch": SMALL["gpt2"]}
    for arm, names in small.items():
        (row,) = (row for label, row in rows.items() if label.partition(" ")[0] == arm)
        last = np.sort([recorded.curve(name, RETURN)[-1][1] for name in names])
        cut = len(last) // 4
        mean = last[cut : len(last) - cut].mean()
        assert row["n"] == len(names)
        assert row["IQM of return [95%]"].startswith(f"{mean:.1f} [")
        assert row["runs, sorted"] == " ".join(f"{value:.1f}" for value in last)


def test_overview_names_unfinished_runs_that_are_included(recorded: Recorded):
    statuses = ("FINISHED", "RUNNING", "FAILED")
    records = load(recorded.uri, EXPERIMENT, compare.KEYS, statuses=statuses)
    text = compare.overview(records).text
    assert "Included although they have not finished: 1 FAILED, 1 RUNNING." in text


def test_curve_is_the_interquartile_mean_at_each_evaluation(recorded: Recorded, jobs: Records):
    figure = compare.curves(jobs).figures["curves-env-step"]
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    curves = [recorded.curve(name, RETURN) for name in SMALL["gru"]]
    expected = scipy.stats.trim_mean([[value for _, value in curve] for curve in curves], 0.25)
    np.testing.assert_allclose(thick[0].get_ydata(), expected)
    assert list(thick[0].get_xdata()) == [step for step, _ in curves[0]]
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() < 1]
    assert len(thin) == 6


def test_compute_axis_without_flops_is_gradient_updates(recorded: Recorded, jobs: Records):
    section = compare.curves(jobs, "compute")
    assert "FLOPs are not recorded; the axis shows gradient updates." in section.text
    axis = section.figures["curves-compute"].axes[0]
    assert axis.get_xlabel() == "gradient updates"
    last = recorded.curve("small_gru_0", "replay/updates")[-1][1]
    assert max(line.get_xdata()[-1] for line in axis.lines) == last


def test_wall_time_axis_names_its_unit(jobs: Records):
    axis = compare.curves(jobs, "seconds").figures["curves-seconds"].axes[0]
    assert axis.get_xlabel() == "wall time (minutes)"


def test_compute_axis_with_flops_is_flops(jobs: Records):
    updates = jobs.curves[jobs.curves["key"] == "replay/updates"]
    flops = updates.assign(key="compute/flops", value=updates["value"] * 3e9)
    curves = pd.concat([jobs.curves, flops])
    figure = compare.curves(Records("", jobs.runs, curves), "compute").figures["curves-compute"]
    assert figure.axes[0].get_xlabel() == "training compute (FLOP)"


def test_scores_of_unequal_runs_are_taken_at_the_common_budget(
    recorded: Recorded, records: Records
):
    long = records.runs["run_id"].isin([recorded.run_id(f"long_gpt2_{s}") for s in range(3)])
    short = recorded.run_id("long_gpt2_2")
    curves = records.curves
    cut = curves[(curves["run_id"] != short) | (curves["env_step"] <= 1500)]
    (group,) = scores(Records("", records.runs[long], cut))
    expected = [dict(recorded.curve(f"long_gpt2_{seed}", RETURN))[1500] for seed in range(3)]
    assert sorted(group.arm(group.labels[0])[0]) == sorted(expected)
    assert group.notes == [
        "CartPole-v1: compared at env step 1500, the last that all runs reached "
        "(the longest run has 3000 steps)."
    ]


def test_runs_first_evaluated_after_the_budget_have_scores_of_their_own(
    recorded: Recorded, records: Records
):
    group, later = scores(records)
    assert (
        "CartPole-v1: 3 runs first evaluated after env step 800: compared separately."
        in group.notes
    )
    assert later.name == "CartPole-v1, env step 3000"
    expected = [recorded.curve(f"long_gpt2_{seed}", RETURN)[-1][1] for seed in range(3)]
    assert sorted(later.frame["score"]) == sorted(expected)


def test_unfinished_run_does_not_decide_the_budget(arms: Callable[..., Records]):
    records = arms(*[("scratch", {}, "E", seed, 10.0 + seed) for seed in range(3)])
    records.runs.loc[1:, "status"] = "KILLED"
    cut = (records.curves["run_id"] != "0") & (records.curves["env_step"] > 100)
    (group,) = scores(Records("", records.runs, records.curves[~cut]))
    assert list(group.frame["score"]) == [10.0]


def test_overview_shows_the_end_of_each_run(arms: Callable[..., Records]):
    (table,) = compare.overview(arms(*[("a", {}, "E", s, 7.25 + s) for s in (1, 0)])).tables
    assert list(table["last env step"]) == ["200"]
    assert list(table["last return, by seed"]) == ["7.25 8.25"]


def test_difference_of_arms_is_paired_by_seed(recorded: Recorded, jobs: Records):
    section = compare.one_knob_differences(jobs)
    first, second = last_returns(recorded, "gpt2"), last_returns(recorded, "gru")
    expected = np.mean(np.subtract(first, second))
    assert f"({expected:.1f} [" in section.text[0]
    assert "no difference detectable at n = 3" in section.text[0]
    assert list(section.figures) == ["forest"]


def test_large_difference_is_claimed(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, 10.0 + s) for s in range(5)]
    rows += [("pretrained-full", {"pretrained": "true"}, "E", s, 50.0 + s) for s in range(5)]
    section = compare.one_knob_differences(arms(*rows))
    assert section.text[0] == (
        "E, pretrained: pretrained-full is higher than scratch by 40.0 [40.0, 40.0], p = 0.0079, n = 5."
    )


def test_short_run_among_long_ones_is_left_out_with_a_note(arms: Callable[..., Records]):
    """A smoke test in the same store must not shorten the budget of the other runs."""
    records = arms(*[("scratch", {}, "E", s, 10.0 + s) for s in range(4)])
    curves = records.curves
    smoke = curves["run_id"] == "3"
    curves.loc[smoke, "env_step"] = [20, 50]
    (group,) = scores(records)
    assert sorted(group.arm("scratch")[0]) == [10.0, 11.0, 12.0]
    assert group.notes == ["E: 1 run left out of the scores: ended before env step 200."]


def test_single_seed_gives_no_interval_and_no_comparison(arms: Callable[..., Records]):
    records = arms(("scratch", {}, "E", 0, 7.0), ("gru", {"backbone": "gru"}, "E", 0, 5.0))
    section = compare.table(records)
    assert section.text == ["E: 2 arms have a single run: no interval, no comparison."]
    assert list(section.tables[0]["IQM of return [95%]"]) == ["5.0", "7.0"]
    assert compare.profile(records).figures == {}
    text = compare.one_knob_differences(records).text
    assert text == ["E: 1 pair of arms has fewer than two seeds in common: no comparison."]
    assert len(compare.curves(records).figures) == 1


def test_environments_with_known_bounds_are_pooled(arms: Callable[..., Records]):
    rows = [("scratch", {}, "CartPole-v1", s, 250.0) for s in range(2)]
    rows += [("scratch", {}, "Acrobot-v1", s, -250.0) for s in range(2)]
    (group,) = scores(arms(*rows))
    assert group.unit == "normalized return"
    assert list(group.arm("scratch")[0]) == [0.5] * 4


def test_environments_with_unknown_bounds_are_separate(arms: Callable[..., Records]):
    rows = [("scratch", {}, env, s, 2.0) for s in range(2) for env in ("CartPole-v1", "My-v0")]
    records = arms(*rows)
    assert [group.name for group in scores(records)] == ["CartPole-v1", "My-v0"]
    assert "Environments are not pooled" in " ".join(compare.table(records).text)


def test_run_with_nan_return_is_left_out_with_a_note(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, value) for s, value in enumerate([1.0, 3.0, float("nan")])]
    (group,) = scores(arms(*rows))
    assert sorted(group.arm("scratch")[0]) == [1.0, 3.0]
    assert "1 run without a finite return left out." in group.notes


def test_note_says_how_many_of_too_many_arms_are_drawn(arms: Callable[..., Records]):
    records = arms(*[(f"arm{n:02}", {}, "E", s, n + s) for n in range(13) for s in range(2)])
    for section in (compare.profile(records), compare.improvement(records)):
        assert "E: 13 arms; the 12 with the most runs are drawn." in section.text


def test_profile_of_equal_scores_is_a_sentence(arms: Callable[..., Records]):
    section = compare.profile(arms(*[("scratch", {}, "CartPole-v1", s, 500.0) for s in range(3)]))
    assert section.text == ["CartPole-v1: every run has 500, so there is no profile."]
    assert not section.figures


def test_every_section_is_a_sentence_without_a_finite_return(arms: Callable[..., Records]):
    records = arms(*[("scratch", {}, "E", s, float("nan")) for s in range(2)])
    records.curves["value"] = float("nan")
    for section in compare.all_sections(records)[1:]:
        assert section.text and not section.figures
    assert compare.table(records).text == ["No run has logged a finite eval/return, of 2 runs."]


def test_curve_skips_returns_that_are_not_finite(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, value) for s, value in enumerate([2.0, 4.0, float("inf")])]
    section = compare.curves(arms(*rows))
    assert "1 evaluation without a finite return left out." in section.text
    thick = [
        line for line in section.figures["curves-env-step"].axes[0].lines if line.get_lw() == 2
    ]
    # Its run has a finite return at step 100 only, so all three runs cover only that step.
    assert [line.get_xydata().tolist() for line in thick] == [[[100.0, 0.0]]]


def test_table_warns_of_arms_in_different_environments(
    arms: Callable[..., Records],
):
    rows = [("scratch", {}, "CartPole-v1", 0, 1.0), ("gru", {}, "Acrobot-v1", 0, 1.0)]
    assert "rows are not comparable" in " ".join(compare.table(arms(*rows)).text)


def test_every_section_is_a_sentence_without_runs(tmp_path):
    records = load(f"sqlite:///{tmp_path}/none.db")
    for section in compare.all_sections(records):
        assert section.text and not section.figures and "no store" in " ".join(section.text)


def test_figure_drawn_again_has_the_same_bytes(jobs: Records):
    for kind in ("png", "svg"):
        first, second = (
            render(compare.curves(jobs).figures["curves-env-step"], kind) for _ in range(2)
        )
        assert first == second


def test_recorded_arms_differ_in_the_backbone_only():
    """The two arms of the fixture differ in the backbone only."""
    from recorded import DATA

    params = [
        json.loads((DATA / name / "run.json").read_text())["params"]
        for name in ("small_gru_0", "small_gpt2_0")
    ]
    differing = {key for key in params[0] if params[0][key] != params[1][key]}
    assert differing <= {"backbone.name", "run_name"} | {k for k in differing if "uri" in k}
