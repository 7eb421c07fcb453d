"""The laws of a study, counted in its own storage, with real processes and real kills."""

import contextlib
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sweep_helpers import Sweeper, checkpoints, read_starts, wait_until

LR = "algo.optimizer.lr=tag(log,interval(1e-4,1e-2))"
STUDY = "hydra.sweeper.study_name=s"


def n_trials(count: int, jobs: int = 1) -> list[str]:
    return [STUDY, LR, f"hydra.sweeper.n_trials={count}", f"hydra.sweeper.n_jobs={jobs}"]


def where(sweeper: Sweeper, number: int) -> Path:
    return sweeper.folder / "outputs" / "sweeps" / "s" / str(number)


def trials(sweeper: Sweeper, name: str = "s", arm: str = ".") -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/{arm}/study.db"
    return optuna.load_study(study_name=name, storage=url).trials


def begun(sweeper: Sweeper) -> int:
    """How many processes there have been."""
    return sum(len(read_starts(where(sweeper, number))) for number in range(10))


def test_n_trials_is_a_total(sweeper):
    code, out = sweeper(*n_trials(2))
    assert code == 0, out
    sweeper(*n_trials(2))
    assert len(trials(sweeper)) == 2
    sweeper(*n_trials(4))
    done = trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert [len(read_starts(where(sweeper, n))) for n in range(4)] == [1] * 4
    # Seeded by the number of trials so far: gone on with, nothing is drawn again.
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 4
    for trial in done:  # the stand-in's return is 10 * (lr + seed)
        assert trial.value == pytest.approx(10 * trial.params["algo.optimizer.lr"])


def test_folders_of_another_database_are_not_taken_for_its_own(sweeper):
    sweeper(*n_trials(1))
    where(sweeper, 0).with_name("study.db").unlink()
    code, out = sweeper(*n_trials(1))
    assert code == 2
    assert "0 is of a study that this database does not know" in out.splitlines()[-1]
    assert len(read_starts(where(sweeper, 0))) == 1


def test_killed_drivers_and_trials_leave_exactly_n_trials(sweeper):
    """Six trials; a driver and a trial are killed, then a driver alone, then a trial."""
    pick, params = random.Random(0), {}
    for victims in ("trial and driver", "driver", "trial"):
        before = begun(sweeper)
        driver = sweeper.start(*n_trials(6, jobs=2), FAKE_RUN_STEP_SECONDS="0.1")
        wait_until(lambda before=before: begun(sweeper) > before + 1)
        running = [trial for trial in trials(sweeper) if trial.state is TrialState.RUNNING]
        folders = [where(sweeper, trial.number) for trial in running]
        wait_until(lambda folders=folders: all(map(checkpoints, folders)))
        # Not before: a trial that was just asked for has drawn nothing yet.
        known = {trial.number: trial.params for trial in trials(sweeper)}
        params |= {trial.number: known[trial.number] for trial in running}
        if "trial" in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(read_starts(pick.choice(folders))[-1][1]), signal.SIGKILL)
        if "driver" in victims:
            driver.kill()
        out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    done = trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 6
    assert {number: done[number].params for number in params} == params
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 6
    for number in range(6):  # every process but the first went on from a checkpoint
        first, *others = (int(start[0]) for start in read_starts(where(sweeper, number)))
        assert first == 0
        assert all(others)


def test_ctrl_c_stops_a_study_and_the_same_command_goes_on(sweeper):
    driver = sweeper.start(*n_trials(2), FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: checkpoints(where(sweeper, 0)))
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert sweeper(*n_trials(2))[0] == 0
    assert [t.state for t in trials(sweeper)] == [TrialState.COMPLETE] * 2
    assert [len(read_starts(where(sweeper, n))) for n in range(2)] == [2, 1]


def test_two_drivers_on_a_fresh_study_share_n_trials(sweeper):
    drivers = [sweeper.start(*n_trials(7), FAKE_RUN_STEP_SECONDS="0.05") for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    done = trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 7
    assert [len(read_starts(where(sweeper, n))) for n in range(7)] == [1] * 7
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 7
    assert len({trial.user_attrs["owner"] for trial in done}) == 2


def test_a_failing_trial_has_failed_with_its_cause_and_counts(sweeper):
    code, out = sweeper(*n_trials(2), FAKE_RUN_FAIL_SEED="0")
    assert code == 1
    assert [t.state for t in trials(sweeper)] == [TrialState.FAIL] * 2
    assert trials(sweeper)[0].user_attrs["cause"] == "lr is invalid"
    assert "2 of 2 runs failed" in out


def test_a_hopeless_run_is_stopped_with_its_curve_and_checkpoint_kept(sweeper):
    # Values from best to worst: the grid is in order when its seed is that of the study.
    values = "algo.optimizer.lr=1.0,0.9,0.8,0.001"
    pruner = ["hydra.sweeper.pruner=median", "+hydra.sweeper.pruner_options.n_startup_trials=1"]
    command = [STUDY, values, "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=grid", *pruner]
    # However late the driver looks: the last one waits to be stopped.
    code, out = sweeper(*command, FAKE_RUN_STEP_SECONDS="0.1", FAKE_RUN_HOLD_BELOW="0.01")
    assert code == 0, out
    done = trials(sweeper)
    pruned = [trial for trial in done if trial.state is TrialState.PRUNED]
    assert pruned and {t.state for t in done} == {TrialState.PRUNED, TrialState.COMPLETE}
    for trial in pruned:
        assert trial.intermediate_values
        assert max(trial.intermediate_values) < 10
        assert checkpoints(where(sweeper, trial.number))
    assert sweeper(*command)[0] == 0
    assert sum(len(read_starts(where(sweeper, n))) for n in range(4)) == 4


def test_a_trial_over_seeds_is_worth_their_mean(sweeper):
    seeds = ["seeds=3", "hydra.sweeper.pruner=wilcoxon"]
    code, out = sweeper(*n_trials(1, jobs=2), *seeds)
    assert code == 0, out
    (trial,) = trials(sweeper)
    assert trial.value == pytest.approx(10 * (trial.params["algo.optimizer.lr"] + 1))
    assert sorted(trial.intermediate_values) == [0, 1, 2]


def test_several_objectives_make_a_pareto_study(sweeper):
    pareto = ["objective='eval/return,eval/return:auc'"]
    pareto += ["hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.sampler=nsgaii"]
    code, out = sweeper(*n_trials(2), *pareto)
    assert code == 0, out
    lr = trials(sweeper)[0].params["algo.optimizer.lr"]
    assert trials(sweeper)[0].values == pytest.approx([10 * lr, 5.5 * lr])


def test_a_study_per_arm_has_n_trials_for_each(sweeper):
    arms = [
        "+hydra.sweeper.arms.scratch='peft=false'",
        "+hydra.sweeper.arms.lora='peft=true'",
        "hydra.sweeper.study_per_arm=true",
    ]
    code, out = sweeper(*n_trials(2, jobs=2), *arms)
    assert code == 0, out
    for arm in ("scratch", "lora"):
        states = [trial.state for trial in trials(sweeper, f"s-{arm}", arm)]
        assert states == [TrialState.COMPLETE] * 2


def test_an_objective_never_logged_names_those_that_were(sweeper):
    code, out = sweeper(*n_trials(3), "objective=replay/updates")
    assert code == 2
    line = "objective=replay/updates was never logged; choose from eval/return"
    assert line in out
    assert len(trials(sweeper)) == 1  # the others would end the same way
    # With the right one, the same study goes on, and the run's work is not lost.
    assert sweeper(*n_trials(3))[0] == 0
    assert [t.state for t in trials(sweeper)] == [TrialState.COMPLETE] * 3
    assert len(read_starts(where(sweeper, 0))) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    sweeper = Sweeper(tmp_path_factory.mktemp("finished"))
    assert sweeper(*n_trials(1))[0] == 0
    return sweeper


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (["hydra.sweeper.direction=minimize"], "was made to maximize, not minimize"),
        (["algo.optimizer.lr=interval(1,2)"], "was made with algo.optimizer.lr {'low': 0.0001"),
        (["algo.horizon=3"], "was made with algo.horizon 15, not 3"),
        (["objective=eval/return:auc"], "was made with objective eval/return, not eval/return:auc"),
    ],
)
def test_a_study_of_something_else_is_refused(finished, changed, line):
    code, out = finished(*n_trials(2), *changed)
    assert code == 2
    assert line in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("use a new hydra.sweeper.study_name")


def test_a_trial_of_a_silent_machine_is_taken_over(sweeper):
    """Of another machine only the heartbeats can be seen."""
    driver = sweeper.start(*n_trials(1), FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: checkpoints(where(sweeper, 0)))
    driver.kill()
    driver.communicate()
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/study.db"
    storage = optuna.storages.RDBStorage(url)
    storage.set_trial_user_attr(1, "owner", "elsewhere/1/abc")
    storage.record_heartbeat(1)
    driver = sweeper.start(*n_trials(1), "hydra.sweeper.heartbeat=1")
    said = threading.Event()

    def beat():  # the other machine, until it falls silent
        while not said.wait(0.3):
            storage.record_heartbeat(1)

    with ThreadPoolExecutor(1) as machine:
        machine.submit(beat)
        out = ""
        for line in driver.stdout:
            out += line
            if "waiting for 1 trials of other drivers" in line:
                said.set()
        waited = said.is_set()
        said.set()
    assert (driver.wait(), waited) == (0, True), out
    assert len(read_starts(where(sweeper, 0))) == 2
