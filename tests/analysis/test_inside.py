"""A look inside a run: where its time went, what it foretold, what its adapters add."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from recorded import EXPERIMENT, Recorded

from llmdreamer.analysis import inside, open_loop
from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.evaluation.open_loop_record import FILE, Errors, Example, OpenLoop


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
    (place,) = records.runs.set_index("run_id").loc[[run_id], "artifact_uri"]
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
    part = open_loop.errors(foretold())
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
    part = open_loop.examples(foretold())
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
