"""Sections on a single run: time split, open-loop predictions, adapters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from recorded import EXPERIMENT, Recorded
from refusals import assert_names

from llmdreamer.analysis import open_loop, single_run
from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.evaluation.open_loop_record import FILE, Errors, Example, OpenLoop


def test_single_run_draws_recorded_metrics_and_names_missing_ones(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT)
    curves = records.curves[records.curves["key"] != "behavior/policy_entropy"]
    records = replace(records, curves=curves)
    run_id = recorded.run_id("small_gru_0")
    section, imagined = single_run.all_sections(records, run_id)
    assert section.text[-1] == "Not recorded in this run: policy entropy, time split."
    assert imagined.text[0].startswith("Not shown: ")
    assert_names(imagined.text[0], FILE, "llmdreamer imagine")
    axes = {axis.get_title(loc="left"): axis for axis in section.figures["metrics"].axes}
    loss = recorded.curve("small_gru_0", "behavior/return_scale")
    (line,) = axes["Return normalizer"].lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == loss
    ratio = {line.get_label(): line.get_ydata() for line in axes["Replay ratio"].lines}
    assert set(ratio["configured"]) == {0.2}


def test_time_split_fills_in_zero_for_a_stage_that_did_not_run(records: Records):
    """It is not logged then. A line between its logged values would show time that was not spent."""
    run_id = records.runs["run_id"].iloc[0]
    shares = {"time/imagination_share": [0.5, 0.6, 0.7], "time/evaluation_share": [None, 0.3, None]}
    rows = [
        {"run_id": run_id, "key": key, "env_step": step, "value": value, "seconds": 0.0}
        for key, values in shares.items()
        for step, value in zip((10, 20, 30), values, strict=True)
        if value is not None
    ]
    section, _ = single_run.all_sections(Records("", records.runs, pd.DataFrame(rows)), run_id)
    (axis,) = section.figures["metrics"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["time/evaluation_share"] == [[10, 0], [20, 0.3], [30, 0]]


def test_replay_ratio_panel_without_the_configured_ratio_draws_one_line(records: Records):
    run_id = records.runs["run_id"].iloc[0]
    row = {"run_id": run_id, "key": "replay/ratio", "env_step": 1, "value": 0.5, "seconds": 0.0}
    runs = records.runs.assign(replay_ratio="unknown")
    section, _ = single_run.all_sections(Records("", runs, pd.DataFrame([row])), run_id)
    assert len(section.figures["metrics"].axes[0].lines) == 1


def test_open_loop_results_are_read_from_the_runs_artifacts(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT)
    run_id = recorded.run_id("small_gru_1")
    (uri,) = records.runs.set_index("run_id").loc[[run_id], "artifact_uri"]
    folder = Path(uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    open_loop_results().save(folder / FILE)
    try:
        _, errors, examples = single_run.all_sections(records, run_id)
    finally:
        (folder / FILE).unlink()
    assert errors.title == "Prediction error by horizon"
    assert list(errors.figures) == ["prediction-error"] and len(examples.figures) == 2


def open_loop_results() -> OpenLoop:
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


def test_open_loop_errors_are_stated_drawn_and_tabulated():
    section = open_loop.errors(open_loop_results())
    assert section.text == [
        "Imagination is better than repeating the last observation: vector/state: 2 steps ahead; "
        "image/camera: 3 steps ahead; reward: not even 1 step ahead.",
        "9 windows of experience; 7 of them reach the full horizon.",
    ]
    (table,) = section.tables
    assert list(table["vector/state imagined"]) == ["0.5", "1", "1.5"]
    assert list(table["reward imagined"]) == ["", "", ""]
    axes = {axis.get_title(loc="left"): axis for axis in section.figures["prediction-error"].axes}
    assert list(axes["vector/state"].lines[0].get_ydata()) == [0.5, 1.0, 1.5]
    assert len(axes["reward"].lines) == 2  # a curve without data is not drawn


def test_open_loop_examples_show_the_most_varied_entries_and_images():
    section = open_loop.examples(open_loop_results())
    assert list(section.figures) == ["imagined-state", "imagined-camera"]
    assert "state: the 6 of 8 entries that vary most." in section.text
    axis = section.figures["imagined-state"].axes[0]
    assert [line.get_label() for line in axis.lines[:3]] == [
        "imagined: median",
        "imagined: one trajectory",
        "observed",
    ]
    # From the reconstruction of the last observed step to the imagined ones.
    assert list(axis.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert list(axis.lines[0].get_ydata()) == [0, 1, 1, 1]
    assert len(section.figures["imagined-camera"].axes) == 3 * 5


def test_adapter_norms_are_drawn_by_block(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT, [RETURN])
    run_id = recorded.run_id("small_gpt2_0")
    rows = [
        {"run_id": run_id, "key": f"lora/h.{n}.attn.c_attn", "env_step": t, "value": n + t / 10}
        for n in range(11)
        for t in (1, 2)
    ]
    curves = pd.DataFrame(rows).assign(seconds=0.0)
    _, section, _ = single_run.all_sections(Records("", records.runs, curves), run_id)
    assert section.title == "LoRA weight norms by layer"
    assert section.tables[0]["layer"].iloc[-1] == "h.10.attn.c_attn"
    (axis,) = section.figures["lora-norms"].axes
    assert list(axis.lines[1].get_xdata()) == list(range(11))
    np.testing.assert_allclose(axis.lines[1].get_ydata(), np.arange(11) + 0.2)


def test_select_run_returns_the_newest_run_by_default(records: Records):
    newest = records.runs.sort_values("started")["run_id"].iloc[-1]
    assert single_run.select_run(records, None) == newest
    assert single_run.select_run(records, "no such") is None
    (section,) = single_run.all_sections(records, "no such")
    assert "No run's id or name begins with 'no such'." in section.text[0]
