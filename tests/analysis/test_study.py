"""A study drawn: its trials, its front, and one that is not there."""

from pathlib import Path

import optuna

from llmdreamer.analysis import (
    plot_study,
    study,
)


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
    assert f"{tmp_path}/empty/study.db" in part.text[0]


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


def test_no_study_is_a_sentence_and_no_file(tmp_path: Path):
    (part,) = study.everything(f"sqlite:///{tmp_path}/none.db")
    assert f"{tmp_path}/none.db" in part.text[0]
    assert not (tmp_path / "none.db").exists()


def test_a_studys_database_is_named_without_its_password():
    (part,) = study.everything("postgresql://me:sesame@127.0.0.1:1/db")
    (line,) = part.text
    assert line.startswith("postgresql://me:***@127.0.0.1:1/db holds no Optuna studies (")
    assert "sesame" not in line
