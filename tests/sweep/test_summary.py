"""The summary of a sweep that its run in MLflow shows."""

import math
from types import SimpleNamespace

from llmdreamer.config import parse_objectives
from llmdreamer.sweep.results_table import ResultRow
from llmdreamer.sweep.summary import MAX_TABLE_ROWS, summarize


def make_plan(objective="eval/return", maximize=(True,), arms=()):
    return SimpleNamespace(
        objectives=parse_objectives(objective),
        maximize=list(maximize),
        swept={"algo.optimizer.lr": None},
        settings=SimpleNamespace(arms=dict.fromkeys(arms, "")),
    )


def make_row(number, values=(), *, group=None, seed=0, state="finished", cause="", arm="gru"):
    params = f"algo.optimizer.lr=0.00{number}234567"
    name = str(number) if group is None else group
    return ResultRow(
        params, name, seed, params, number, arm, params,
        state=state, env_step=64, values=list(values), cause=cause,
    )  # fmt: skip


ROWS = [make_row(0, [1.0]), make_row(1, [4.0]), make_row(2, state="pruned"), make_row(3, [2.0])]


def test_summary_has_best_value_parameters_and_runs_by_state():
    found = summarize(make_plan(), ROWS)
    runs = {"runs/finished": 3.0, "runs/pruned": 1.0, "runs/failed": 0.0, "runs/unfinished": 0.0}
    assert found.metrics == {"best_value": 4.0} | runs
    assert found.tags == {
        "runs": "3 finished, 1 pruned",
        "objective": "eval/return",
        "direction": "maximize",
        "best_run": "1",
        "best_params": "algo.optimizer.lr=0.001234567",
    }
    lines = found.note.splitlines()
    assert "4**" in lines[0] and lines[0].endswith("run 1: lr=0.001235")
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == [
        "| 1", "| 3", "| 0", "| 2",
    ]  # fmt: skip


def test_summary_minimizes_where_the_sweep_does():
    assert summarize(make_plan(maximize=[False]), ROWS).tags["best_run"] == "0"


def test_best_cell_is_a_mean_among_cells_with_most_finished_seeds():
    rows = [
        make_row(0, [9.0], group="a"),
        make_row(1, group="a", seed=1, state="failed", cause="x|y"),
    ]
    rows += [make_row(2 + seed, [float(seed)], group="b", seed=seed) for seed in range(2)]
    found = summarize(make_plan(arms=["gru"]), rows)
    assert (found.metrics["best_value"], found.tags["best_run"]) == (0.5, "2")
    assert found.tags["best_params"].startswith("gru algo.")
    assert "x\\|y" in found.note


def test_summary_of_several_objectives_has_the_pareto_front():
    values = [(1.0, 5.0), (2.0, 5.0), (3.0, 9.0), (math.nan, 1.0), (2.0, 6.0)]
    rows = [make_row(number, pair) for number, pair in enumerate(values)]
    found = summarize(make_plan("eval/return,compute/flops", [True, False]), rows)
    assert found.tags["pareto_front"] == "1, 2"
    assert "best_value" not in found.metrics


def test_summary_of_a_sweep_without_results_has_no_best_value():
    assert set(summarize(make_plan(), []).metrics.values()) == {0.0}
    found = summarize(make_plan(), [make_row(0, state="waiting"), ROWS[2]]).metrics
    assert (found["runs/unfinished"], found["runs/pruned"]) == (1.0, 1.0)
    assert "best_value" not in found


def test_table_is_cut_and_says_how_many_rows_are_left_out():
    rows = [make_row(number, [1.0]) for number in range(MAX_TABLE_ROWS + 7)]
    note = summarize(make_plan(), rows).note
    assert note.count("\n| ") == MAX_TABLE_ROWS + 2 and "7 more" in note
