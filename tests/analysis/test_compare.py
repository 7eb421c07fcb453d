"""The tables and figures hold the numbers that NumPy finds in the runs' own files."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from recorded import EXPERIMENT, Recorded

from llmdreamer.analysis import compare
from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.analysis.part import picture
from llmdreamer.analysis.scores import scores

SMALL = {arm: [f"small_{arm}_{seed}" for seed in range(3)] for arm in ("gru", "gpt2")}


@pytest.fixture(scope="module")
def jobs(recorded: Recorded) -> Records:
    """The six runs of the sweep: two arms, three seeds."""
    return load(recorded.uri, EXPERIMENT, parent=recorded.parent)


def last_returns(recorded: Recorded, arm: str) -> list[float]:
    return [recorded.curve(name, RETURN)[-1][1] for name in SMALL[arm]]


def test_scores_are_the_last_evaluations(recorded: Recorded, jobs: Records):
    (found,) = scores(jobs)
    assert found.labels == ["gru", "scratch"]
    assert sorted(found.of("gru")[0]) == sorted(last_returns(recorded, "gru"))
    assert sorted(found.of("scratch")[0]) == sorted(last_returns(recorded, "gpt2"))


def test_the_table_has_n_and_the_interquartile_mean(recorded: Recorded, jobs: Records):
    (table,) = compare.table(jobs).tables
    assert list(table["n"]) == [3, 3]
    for row, arm in zip(table.to_dict("records"), ("gru", "gpt2"), strict=True):
        expected = scipy.stats.trim_mean(last_returns(recorded, arm), 0.25)
        assert row["IQM of return [95%]"].startswith(f"{expected:.1f} [")
        assert "n = 3 runs, 3 seeds" in row["what it supports"]


def test_of_a_store_with_all_that_goes_wrong_the_table_holds_what_numpy_finds_in_the_spools(
    recorded: Recorded, records: Records
):
    """Killed, failed, pruned and running ones left out, the resumed one once, of two alike the newer."""
    rows = {
        row["arm"]: row
        for table in compare.table(records).tables
        for row in table.to_dict("records")
    }
    small = {"gru": [*SMALL["gru"], "resumed"], "scratch": SMALL["gpt2"]}
    for arm, names in small.items():
        (row,) = (row for label, row in rows.items() if label.partition(" ")[0] == arm)
        last = np.sort([recorded.curve(name, RETURN)[-1][1] for name in names])
        cut = len(last) // 4
        middle = last[cut : len(last) - cut].mean()
        assert row["n"] == len(names)
        assert row["IQM of return [95%]"].startswith(f"{middle:.1f} [")
        assert row["runs, sorted"] == " ".join(f"{value:.1f}" for value in last)


def test_runs_that_did_not_finish_are_never_counted_in_silence(recorded: Recorded):
    statuses = ("FINISHED", "RUNNING", "FAILED")
    records = load(recorded.uri, EXPERIMENT, compare.KEYS, statuses=statuses)
    said = compare.overview(records).text
    assert "Counted though they have not finished, as was asked for: 1 FAILED, 1 RUNNING." in said


def test_the_curve_is_the_interquartile_mean_at_each_evaluation(recorded: Recorded, jobs: Records):
    figure = compare.curves(jobs).figures["curves-env-step"]
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    curves = [recorded.curve(name, RETURN) for name in SMALL["gru"]]
    expected = scipy.stats.trim_mean([[value for _, value in curve] for curve in curves], 0.25)
    np.testing.assert_allclose(thick[0].get_ydata(), expected)
    assert list(thick[0].get_xdata()) == [step for step, _ in curves[0]]
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() < 1]
    assert len(thin) == 6


def test_compute_is_gradient_updates_where_no_flops_are_recorded(recorded: Recorded, jobs: Records):
    part = compare.curves(jobs, "compute")
    assert "FLOPs are not recorded: gradient updates instead." in part.text
    axis = part.figures["curves-compute"].axes[0]
    assert axis.get_xlabel() == "gradient updates"
    last = recorded.curve("small_gru_0", "replay/updates")[-1][1]
    assert max(line.get_xdata()[-1] for line in axis.lines) == last


def test_wall_time_is_told_in_its_unit(jobs: Records):
    axis = compare.curves(jobs, "seconds").figures["curves-seconds"].axes[0]
    assert axis.get_xlabel() == "wall time (minutes)"


def test_flops_are_the_axis_where_they_are_recorded(jobs: Records):
    updates = jobs.curves[jobs.curves["key"] == "replay/updates"]
    flops = updates.assign(key="compute/flops", value=updates["value"] * 3e9)
    curves = pd.concat([jobs.curves, flops])
    figure = compare.curves(Records("", jobs.runs, curves), "compute").figures["curves-compute"]
    assert figure.axes[0].get_xlabel() == "training compute (FLOP)"


def test_runs_of_unequal_length_are_compared_where_all_were(recorded: Recorded, records: Records):
    long = records.runs["run_id"].isin([recorded.run_id(f"long_gpt2_{s}") for s in range(3)])
    short = recorded.run_id("long_gpt2_2")
    curves = records.curves
    cut = curves[(curves["run_id"] != short) | (curves["env_step"] <= 1500)]
    (found,) = scores(Records("", records.runs[long], cut))
    expected = [dict(recorded.curve(f"long_gpt2_{seed}", RETURN))[1500] for seed in range(3)]
    assert sorted(found.of(found.labels[0])[0]) == sorted(expected)
    assert found.notes == [
        "CartPole-v1: compared at env step 1500, the last that all runs reached "
        "(the longest went on to 3000)."
    ]


def test_runs_that_were_evaluated_too_late_are_counted(records: Records):
    (found,) = scores(records)
    assert (
        "CartPole-v1: 3 runs left out of the scores: first evaluated after env step 800."
        in found.notes
    )


def test_the_difference_of_arms_is_paired_by_seed(recorded: Recorded, jobs: Records):
    part = compare.axes_of_the_question(jobs)
    one, two = last_returns(recorded, "gpt2"), last_returns(recorded, "gru")
    expected = np.mean(np.subtract(one, two))
    assert f"({expected:.1f} [" in part.text[0]
    assert "no difference detectable at n = 3" in part.text[0]
    assert list(part.figures) == ["forest"]


def test_a_difference_is_claimed_where_it_is_plain(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, 10.0 + s) for s in range(5)]
    rows += [("pretrained-full", {"pretrained": "true"}, "E", s, 50.0 + s) for s in range(5)]
    part = compare.axes_of_the_question(arms(*rows))
    assert part.text[0] == (
        "E, pretrained: pretrained-full is higher than scratch by 40.0 [40.0, 40.0], p = 0.0079, n = 5."
    )


def test_a_short_run_beside_many_long_ones_is_left_out_and_counted(arms: Callable[..., Records]):
    """A smoke test in the same store would have all others compared before they had learned."""
    records = arms(*[("scratch", {}, "E", s, 10.0 + s) for s in range(4)])
    curves = records.curves
    smoke = curves["run_id"] == "3"
    curves.loc[smoke, "env_step"] = [20, 50]
    (found,) = scores(records)
    assert sorted(found.of("scratch")[0]) == [10.0, 11.0, 12.0]
    assert found.notes == ["E: 1 run left out of the scores: ended before env step 200."]


def test_one_seed_gives_numbers_without_intervals(arms: Callable[..., Records]):
    records = arms(("scratch", {}, "E", 0, 7.0), ("gru", {"backbone": "gru"}, "E", 0, 5.0))
    (table,) = compare.table(records).tables
    assert table["what it supports"][1] == (
        "scratch: 7.0 return in a single run: no interval, no comparison."
    )
    assert compare.profile(records).figures == {}
    text = compare.axes_of_the_question(records).text
    assert text[0].endswith("scratch against gru: 1 seed in common: no comparison.")
    assert len(compare.curves(records).figures) == 1


def test_environments_are_pooled_on_the_scale_of_their_returns(arms: Callable[..., Records]):
    rows = [("scratch", {}, "CartPole-v1", s, 250.0) for s in range(2)]
    rows += [("scratch", {}, "Acrobot-v1", s, -250.0) for s in range(2)]
    (found,) = scores(arms(*rows))
    assert found.unit == "normalised return"
    assert list(found.of("scratch")[0]) == [0.5] * 4


def test_environments_of_unknown_scale_stand_alone(arms: Callable[..., Records]):
    rows = [("scratch", {}, env, s, 2.0) for s in range(2) for env in ("CartPole-v1", "My-v0")]
    records = arms(*rows)
    assert [found.name for found in scores(records)] == ["CartPole-v1", "My-v0"]
    assert "Environments are not pooled" in " ".join(compare.table(records).text)


def test_a_run_that_diverged_is_counted_not_averaged(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, value) for s, value in enumerate([1.0, 3.0, float("nan")])]
    (found,) = scores(arms(*rows))
    assert sorted(found.of("scratch")[0]) == [1.0, 3.0]
    assert "1 run without a finite return left out." in found.notes


def test_too_many_arms_are_counted_where_they_are_left_out(arms: Callable[..., Records]):
    records = arms(*[(f"arm{n:02}", {}, "E", s, n + s) for n in range(13) for s in range(2)])
    for part in (compare.profile(records), compare.improvement(records)):
        assert "E: 13 arms; the 12 with the most runs are drawn." in part.text


def test_equal_scores_are_a_sentence_and_no_empty_picture(arms: Callable[..., Records]):
    part = compare.profile(arms(*[("scratch", {}, "CartPole-v1", s, 500.0) for s in range(3)]))
    assert part.text == ["CartPole-v1: every run has 500, so there is no distribution."]
    assert not part.figures


def test_runs_without_a_finite_return_are_a_sentence_in_every_part(arms: Callable[..., Records]):
    records = arms(*[("scratch", {}, "E", s, float("nan")) for s in range(2)])
    records.curves["value"] = float("nan")
    for part in compare.everything(records)[1:]:
        assert part.text and not part.figures
    assert compare.table(records).text == ["No run has logged a finite eval/return, of 2 runs."]


def test_a_return_that_is_not_finite_leaves_the_curve_of_the_others(arms: Callable[..., Records]):
    rows = [("scratch", {}, "E", s, value) for s, value in enumerate([2.0, 4.0, float("inf")])]
    part = compare.curves(arms(*rows))
    assert "1 evaluation without a finite return left out." in part.text
    thick = [line for line in part.figures["curves-env-step"].axes[0].lines if line.get_lw() == 2]
    # Its run reaches step 100 only, and so does the stretch that all three cover.
    assert [line.get_xydata().tolist() for line in thick] == [[[100.0, 0.0]]]


def test_arms_of_different_environments_are_not_held_against_each_other(
    arms: Callable[..., Records],
):
    rows = [("scratch", {}, "CartPole-v1", 0, 1.0), ("gru", {}, "Acrobot-v1", 0, 1.0)]
    assert "rows are not comparable" in " ".join(compare.table(arms(*rows)).text)


def test_no_runs_are_a_sentence_in_every_part(tmp_path):
    records = load(f"sqlite:///{tmp_path}/none.db")
    for part in compare.everything(records):
        assert part.text and not part.figures and "no store" in " ".join(part.text)


def test_a_figure_drawn_again_has_the_same_bytes(jobs: Records):
    for kind in ("png", "svg"):
        first, second = (
            picture(compare.curves(jobs).figures["curves-env-step"], kind) for _ in range(2)
        )
        assert first == second


def test_the_recorded_runs_are_what_they_say():
    """The fixture's two arms differ in the backbone alone."""
    from recorded import DATA

    params = [
        json.loads((DATA / name / "run.json").read_text())["params"]
        for name in ("small_gru_0", "small_gpt2_0")
    ]
    differing = {key for key in params[0] if params[0][key] != params[1][key]}
    assert differing <= {"backbone.name", "run_name"} | {k for k in differing if "uri" in k}
