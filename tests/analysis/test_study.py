"""Figures of a study: its trials, its Pareto front, and a missing study."""

from pathlib import Path

import optuna

from llmdreamer.analysis import (
    plot_study,
    study,
)


def test_study_draws_all_figures_and_counts_trials(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/optuna.db"
    created = optuna.create_study(storage=storage, study_name="s")
    signature = {"space": {}, "value": {"objective": "eval/return"}, "fixed": {}}
    created.set_user_attr("llmdreamer", signature)
    for x in range(4):
        trial = created.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(float(x), 0)
        state = optuna.trial.TrialState.PRUNED if x == 3 else optuna.trial.TrialState.COMPLETE
        created.tell(trial, None if x == 3 else float(x), state=state)
    sections = study.all_sections(storage)
    assert sections[0].text == [
        "Study s: 3 COMPLETE, 1 PRUNED.",
        "With 3 complete trials, importances are only a rough hint.",
    ]
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    assert set(figures) == {
        *("study-history", "study-slices", "study-parallel-coordinates"),
        *("study-intermediate-values", "study-importances", "study-timeline"),
    }
    (axis,) = figures["study-history"].axes
    assert axis.get_ylabel() == "eval/return"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["complete"] == [[0, 0], [1, 1], [2, 2]] and drawn["pruned"] == [[3, 3]]
    # A study minimizes by default.
    assert drawn["best so far"] == [[0, 0], [1, 0], [2, 0]]
    (axis,) = figures["study-intermediate-values"].axes
    assert [line.get_marker() for line in axis.lines].count("v") == 1  # the pruned trial


def test_study_is_found_by_the_folder_of_its_sweep(tmp_path: Path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")
    for storage in (tmp_path, tmp_path / "study.db"):
        assert study.all_sections(str(storage))[0].text == ["Study s: no trials yet."]
    (tmp_path / "empty").mkdir()
    (section,) = study.all_sections(str(tmp_path / "empty"))
    assert f"{tmp_path}/empty/study.db" in section.text[0]


def test_figures_of_a_study_are_written_and_a_missing_study_has_none(tmp_path: Path):
    created = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")
    created.tell(created.ask(), 1.0)
    study.save_figures(str(tmp_path), "s", tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"study-history.png", "study-timeline.png"}
    study.save_figures(str(tmp_path), "other", tmp_path / "none")
    assert not any((tmp_path / "none").iterdir())


def test_pareto_front_holds_the_trials_that_no_other_dominates(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/optuna.db"
    created = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    for values in ([1.0, 1.0], [2.0, 3.0], [0.5, 2.0]):  # the first dominates the last
        created.tell(created.ask(), values)
    figures = {
        name: figure
        for section in study.all_sections(storage)
        for name, figure in section.figures.items()
    }
    (axis,) = figures["study-pareto-front"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"Pareto front": [[1, 1], [2, 3]], "trial": [[0.5, 2]]}


def test_trial_states_differ_in_marker_and_hatch():
    styles = plot_study._STATE_STYLES.values()
    assert len({marker for marker, _, _ in styles}) == len({hatch for _, _, hatch in styles}) == 4


def test_missing_study_is_a_sentence_and_is_not_created(tmp_path: Path):
    (section,) = study.all_sections(f"sqlite:///{tmp_path}/none.db")
    assert f"{tmp_path}/none.db" in section.text[0]
    assert not (tmp_path / "none.db").exists()


def test_study_error_hides_the_password():
    (section,) = study.all_sections("postgresql://me:sesame@127.0.0.1:1/db")
    (line,) = section.text
    assert line.startswith("postgresql://me:***@127.0.0.1:1/db holds no Optuna studies (")
    assert "sesame" not in line
