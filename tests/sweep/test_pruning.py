"""Which trials the pruners stop. The study gets curves and outcomes as from a pool, without processes."""

import optuna
import pytest
from optuna.trial import TrialState

from llmdreamer.sweep.run_source import RunOutcome
from llmdreamer.sweep.studies.study import Study

SPACE = ["algo.optimizer.lr=interval(1e-4,1e-2)", "hydra.sweeper.study_name=s"]
PRUNED, COMPLETE = TrialState.PRUNED, TrialState.COMPLETE


@pytest.fixture
def run_study(make_plan, tmp_path):
    """Run a study whose runs log `curve(trial_number, seed_index)`, and return its trials."""

    def run(curve, *overrides):
        for plan in make_plan(*SPACE, *overrides):
            study = Study(plan)
            while (task := study.next_task()) is not None:
                points, logged = curve(*task.key), []
                for point in points:
                    logged.append(point)
                    if study.should_stop(task, {"eval/return": logged}):
                        break
                # A run that is stopped after its last point has finished.
                kind = "stopped" if len(logged) < len(points) else "finished"
                outcome = RunOutcome(kind, {"eval/return": logged}, logged[-1][0])
                study.record_outcome(task, outcome)
            study.close()
        url = f"sqlite:///{tmp_path}/outputs/sweeps/s/study.db"
        return optuna.load_study(study_name="s", storage=url).trials

    return run


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_pruner_stops_trials_at_the_env_step_where_they_fall_behind(run_study, pruner):
    # Each trial is worse than all before it.
    trials = run_study(
        lambda number, _: [(step, 100.0 - number) for step in range(15, 271, 15)],
        "algo.total_steps=270", "hydra.sweeper.n_trials=9", f"hydra.sweeper.pruner={pruner}",
    )  # fmt: skip
    assert trials[0].state is COMPLETE
    assert trials[0].value == 100.0
    pruned = [trial for trial in trials if trial.state is PRUNED]
    assert pruned
    assert len(trials) == 9
    for trial in pruned:
        assert 15 <= trial.last_step < 270
        assert [*trial.intermediate_values] == [*range(15, trial.last_step + 1, 15)]
        assert trial.user_attrs["env_step"] == trial.last_step


def test_wilcoxon_stops_a_trial_that_is_worse_seed_by_seed(run_study):
    # Seeds differ more than trials do: only paired comparison shows the difference.
    trials = run_study(
        lambda number, index: [(10, 50.0 * index - number * (5 + 0.1 * index))],
        "seeds=8", "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=wilcoxon",
    )  # fmt: skip
    assert [trial.state for trial in trials] == [COMPLETE, PRUNED]
    assert trials[0].value == pytest.approx(175.0)
    # Four pairs in one direction give p = 1/16, the first value below 0.1.
    assert [*trials[1].intermediate_values] == [0, 1, 2, 3]


def test_pruner_compares_means_over_equally_many_seeds(run_study):
    trials = run_study(
        lambda number, index: [(10, index - 2.0 * number)],
        "seeds=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=median",
        "+hydra.sweeper.pruner_options.n_startup_trials=1",
    )  # fmt: skip
    assert trials[0].intermediate_values == {1: 0.0, 2: 0.5, 3: 1.0}
    assert [trial.state for trial in trials] == [COMPLETE, PRUNED, PRUNED]
    assert trials[1].intermediate_values == {1: -2.0}


def test_nsga_ii_continues_its_generations_in_the_next_driver(run_study):
    pareto = ["objective='eval/return,eval/return:auc'", "hydra.sweeper.sampler=nsgaii"]
    pareto += ["hydra.sweeper.direction=[maximize,minimize]"]
    pareto += ["+hydra.sweeper.sampler_options.population_size=2"]
    for total in (3, 6):
        trials = run_study(
            lambda number, _: [(0, 0.0), (10, float(number))],
            *pareto, f"hydra.sweeper.n_trials={total}",
        )  # fmt: skip
        assert [trial.values for trial in trials] == [[n, n / 2] for n in range(total)]
    assert len({trial.params["algo.optimizer.lr"] for trial in trials}) > 3
