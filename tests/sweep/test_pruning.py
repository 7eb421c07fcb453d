"""Whom the pruners stop: a study is told of curves and ends, as the pool tells it, without processes."""

import optuna
import pytest
from optuna.trial import TrialState

from llmdreamer.sweep.run_source import RunOutcome
from llmdreamer.sweep.studies.study import Study

SPACE = ["algo.optimizer.lr=interval(1e-4,1e-2)", "hydra.sweeper.study_name=s"]
PRUNED, COMPLETE = TrialState.PRUNED, TrialState.COMPLETE


@pytest.fixture
def lived(make_plan, tmp_path):
    """The trials of a study whose runs log `curve(number, place of the seed)`, row by row."""

    def lived(curve, *overrides):
        for plan in make_plan(*SPACE, *overrides):
            study = Study(plan)
            while (task := study.next_task()) is not None:
                rows, told = curve(*task.key), []
                for row in rows:
                    told.append(row)
                    if study.should_stop(task, {"eval/return": told}):
                        break
                # Who is asked to stop after the last row has come to the end.
                kind = "stopped" if len(told) < len(rows) else "finished"
                study.record_outcome(task, RunOutcome(kind, {"eval/return": told}, told[-1][0]))
            study.close()
        url = f"sqlite:///{tmp_path}/outputs/sweeps/s/study.db"
        return optuna.load_study(study_name="s", storage=url).trials

    return lived


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_who_falls_behind_at_an_env_step_is_stopped_there(lived, pruner):
    # Each trial is worse than all before it.
    done = lived(
        lambda number, _: [(step, 100.0 - number) for step in range(15, 271, 15)],
        "algo.total_steps=270", "hydra.sweeper.n_trials=9", f"hydra.sweeper.pruner={pruner}",
    )  # fmt: skip
    assert done[0].state is COMPLETE
    assert done[0].value == 100.0
    pruned = [trial for trial in done if trial.state is PRUNED]
    assert pruned
    assert len(done) == 9
    for trial in pruned:
        assert 15 <= trial.last_step < 270
        assert [*trial.intermediate_values] == [*range(15, trial.last_step + 1, 15)]
        assert trial.user_attrs["env_step"] == trial.last_step


def test_wilcoxon_stops_a_trial_that_is_worse_seed_by_seed(lived):
    # Seeds differ more than the trials do: only in pairs does the difference show.
    done = lived(
        lambda number, place: [(10, 50.0 * place - number * (5 + 0.1 * place))],
        "seeds=8", "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=wilcoxon",
    )  # fmt: skip
    assert [trial.state for trial in done] == [COMPLETE, PRUNED]
    assert done[0].value == pytest.approx(175.0)
    # Of four pairs, all in one direction, p = 1/16 is the first below 0.1.
    assert [*done[1].intermediate_values] == [0, 1, 2, 3]


def test_with_seeds_the_means_of_as_many_are_compared(lived):
    done = lived(
        lambda number, place: [(10, place - 2.0 * number)],
        "seeds=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=median",
        "+hydra.sweeper.pruner_options.n_startup_trials=1",
    )  # fmt: skip
    assert done[0].intermediate_values == {1: 0.0, 2: 0.5, 3: 1.0}
    assert [trial.state for trial in done] == [COMPLETE, PRUNED, PRUNED]
    assert done[1].intermediate_values == {1: -2.0}


def test_generations_of_nsga_ii_go_on_over_drivers(lived):
    pareto = ["objective='eval/return,eval/return:auc'", "hydra.sweeper.sampler=nsgaii"]
    pareto += ["hydra.sweeper.direction=[maximize,minimize]"]
    pareto += ["+hydra.sweeper.sampler_options.population_size=2"]
    for total in (3, 6):
        done = lived(
            lambda number, _: [(0, 0.0), (10, float(number))],
            *pareto, f"hydra.sweeper.n_trials={total}",
        )  # fmt: skip
        assert [trial.values for trial in done] == [[n, n / 2] for n in range(total)]
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) > 3
