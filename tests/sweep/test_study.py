"""Studies with real processes and real kills, checked in their storage."""

import contextlib
import json
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


def trial_folder(sweeper: Sweeper, number: int) -> Path:
    return sweeper.folder / "outputs" / "sweeps" / "s" / str(number)


def read_trials(
    sweeper: Sweeper, name: str = "s", arm: str = "."
) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/{arm}/study.db"
    return optuna.load_study(study_name=name, storage=url).trials


def process_count(sweeper: Sweeper) -> int:
    """Return the number of processes started so far."""
    return sum(len(read_starts(trial_folder(sweeper, number))) for number in range(10))


def test_n_trials_counts_trials_of_earlier_commands(sweeper):
    code, out = sweeper(*n_trials(2))
    assert code == 0, out
    sweeper(*n_trials(2))
    assert len(read_trials(sweeper)) == 2
    sweeper(*n_trials(4))
    done = read_trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert [len(read_starts(trial_folder(sweeper, n))) for n in range(4)] == [1] * 4
    # The sampler's seed includes the number of trials: a resumed study draws no parameters twice.
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 4
    for trial in done:  # the fake run's return is 10 * (lr + seed)
        assert trial.value == pytest.approx(10 * trial.params["algo.optimizer.lr"])


def test_study_refuses_trial_folders_that_its_database_does_not_know(sweeper):
    sweeper(*n_trials(1))
    trial_folder(sweeper, 0).with_name("study.db").unlink()
    code, out = sweeper(*n_trials(1))
    assert code == 2
    assert f"{trial_folder(sweeper, 0)} " in out.splitlines()[-1]
    assert len(read_starts(trial_folder(sweeper, 0))) == 1


def test_study_with_killed_drivers_and_runs_has_exactly_n_trials(sweeper):
    """Six trials: first a driver and a run are killed, then only a driver, then only a run."""
    rng, params = random.Random(0), {}
    for victims in ("run and driver", "driver", "run"):
        before = process_count(sweeper)
        # Runs that wait cannot end before the driver is killed, so no run starts that has no checkpoint.
        hold = {"FAKE_RUN_HOLD_BELOW": "inf"} if "driver" in victims else {}
        driver = sweeper.start(*n_trials(6, jobs=2), FAKE_RUN_STEP_SECONDS="0.1", **hold)
        wait_until(lambda before=before: process_count(sweeper) > before + 1)
        running = [trial for trial in read_trials(sweeper) if trial.state is TrialState.RUNNING]
        folders = [trial_folder(sweeper, trial.number) for trial in running]
        wait_until(lambda folders=folders: all(map(checkpoints, folders)))
        # Read the parameters only now: a new trial has none yet.
        current = {trial.number: trial.params for trial in read_trials(sweeper)}
        params |= {trial.number: current[trial.number] for trial in running}
        if "run" in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(read_starts(rng.choice(folders))[-1][1]), signal.SIGKILL)
        if "driver" in victims:
            driver.kill()
        out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    done = read_trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 6
    assert {number: done[number].params for number in params} == params
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 6
    for number in range(6):  # every process but the first resumed from a checkpoint
        first_step, *resumed_steps = (
            int(start[0]) for start in read_starts(trial_folder(sweeper, number))
        )
        assert first_step == 0
        assert all(resumed_steps)


def test_study_stopped_by_ctrl_c_resumes_with_the_same_command(sweeper):
    driver = sweeper.start(*n_trials(2), FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: checkpoints(trial_folder(sweeper, 0)))
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert sweeper(*n_trials(2))[0] == 0
    assert [t.state for t in read_trials(sweeper)] == [TrialState.COMPLETE] * 2
    assert [len(read_starts(trial_folder(sweeper, n))) for n in range(2)] == [2, 1]


def test_two_drivers_of_a_new_study_share_n_trials(sweeper):
    drivers = [sweeper.start(*n_trials(7), FAKE_RUN_STEP_SECONDS="0.05") for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    done = read_trials(sweeper)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 7
    assert [len(read_starts(trial_folder(sweeper, n))) for n in range(7)] == [1] * 7
    assert len({trial.params["algo.optimizer.lr"] for trial in done}) == 7
    assert len({trial.user_attrs["owner"] for trial in done}) == 2


def test_failed_trial_records_its_cause_and_counts_as_a_trial(sweeper):
    code, out = sweeper(*n_trials(2), FAKE_RUN_FAIL_SEED="0")
    assert code == 1 and "2 of 2" in out
    assert [t.state for t in read_trials(sweeper)] == [TrialState.FAIL] * 2
    assert read_trials(sweeper)[0].user_attrs["cause"] == "lr is invalid"


def test_run_that_exits_with_0_before_its_end_fails_its_trial(sweeper):
    code, out = sweeper(*n_trials(1), FAKE_RUN_EXIT_SEED="0")
    assert code == 1, out
    (trial,) = read_trials(sweeper)
    assert trial.state is TrialState.FAIL and "run.json" in trial.user_attrs["cause"]


def test_pruned_run_keeps_its_curve_and_checkpoint(sweeper):
    values = "algo.optimizer.lr=0.001,0.8,0.9,1.0"
    points = ",".join(f"{{algo.optimizer.lr:{lr}}}" for lr in (1.0, 0.9, 0.8))  # the best first
    pruner = ["hydra.sweeper.pruner=median", "+hydra.sweeper.pruner_options.n_startup_trials=1"]
    command = [STUDY, values, "hydra.sweeper.n_trials=4", *pruner]
    command.append(f"hydra.sweeper.start=[{points}]")
    # The last run waits until it is stopped, however late the driver checks it.
    code, out = sweeper(*command, FAKE_RUN_STEP_SECONDS="0.1", FAKE_RUN_HOLD_BELOW="0.01")
    assert code == 0, out
    done = read_trials(sweeper)
    pruned = [trial for trial in done if trial.state is TrialState.PRUNED]
    assert pruned and {t.state for t in done} == {TrialState.PRUNED, TrialState.COMPLETE}
    for trial in pruned:
        assert trial.intermediate_values
        assert max(trial.intermediate_values) < 10
        assert checkpoints(trial_folder(sweeper, trial.number))
    assert sweeper(*command)[0] == 0
    assert sum(len(read_starts(trial_folder(sweeper, n))) for n in range(4)) == 4


def test_trial_over_seeds_has_the_mean_of_their_values(sweeper):
    seeds = ["seeds=3", "hydra.sweeper.pruner=wilcoxon"]
    code, out = sweeper(*n_trials(1, jobs=2), *seeds)
    assert code == 0, out
    (trial,) = read_trials(sweeper)
    assert trial.value == pytest.approx(10 * (trial.params["algo.optimizer.lr"] + 1))
    assert sorted(trial.intermediate_values) == [0, 1, 2]


def test_study_of_several_objectives_stores_all_values(sweeper):
    pareto = ["objective='eval/return,eval/return:auc'"]
    pareto += ["hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.sampler=nsgaii"]
    code, out = sweeper(*n_trials(2), *pareto)
    assert code == 0, out
    lr = read_trials(sweeper)[0].params["algo.optimizer.lr"]
    assert read_trials(sweeper)[0].values == pytest.approx([10 * lr, 5.5 * lr])


def test_study_per_arm_has_n_trials_for_each_arm(sweeper):
    arms = [
        "+hydra.sweeper.arms.scratch='peft=false'",
        "+hydra.sweeper.arms.lora='peft=true'",
        "hydra.sweeper.study_per_arm=true",
    ]
    code, out = sweeper(*n_trials(2, jobs=2), *arms)
    assert code == 0, out
    for arm in ("scratch", "lora"):
        states = [trial.state for trial in read_trials(sweeper, f"s-{arm}", arm)]
        assert states == [TrialState.COMPLETE] * 2


def test_objective_that_is_never_logged_ends_the_study_and_resumes(sweeper):
    code, out = sweeper(*n_trials(3), "objective=replay/updates")
    assert code == 2
    assert "objective=replay/updates" in out and "eval/return" in out
    assert len(read_trials(sweeper)) == 1  # the others would fail in the same way
    # With a logged objective the study resumes, and the finished run is not repeated.
    assert sweeper(*n_trials(3))[0] == 0
    assert [t.state for t in read_trials(sweeper)] == [TrialState.COMPLETE] * 3
    assert len(read_starts(trial_folder(sweeper, 0))) == 1


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    sweeper = Sweeper(tmp_path_factory.mktemp("finished"))
    assert sweeper(*n_trials(1))[0] == 0
    return sweeper


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["hydra.sweeper.direction=minimize"], ["maximize", "minimize"]),
        (["algo.optimizer.lr=interval(1,2)"], ["algo.optimizer.lr", "0.0001"]),
        (["algo.horizon=3"], ["algo.horizon 15", "3"]),
        (["objective=eval/return:auc"], ["objective eval/return", "eval/return:auc"]),
    ],
)
def test_study_that_searched_something_else_is_refused(finished_study, changed, words):
    code, out = finished_study(*n_trials(2), *changed)
    assert code == 2
    assert all(word in out.splitlines()[-1] for word in [*words, "hydra.sweeper.study_name"])


def test_trial_of_a_silent_machine_is_taken_over(sweeper):
    """The driver of another machine shows only heartbeats."""
    driver = sweeper.start(*n_trials(1), FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: checkpoints(trial_folder(sweeper, 0)))
    driver.kill()
    driver.communicate()
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/study.db"
    storage = optuna.storages.RDBStorage(url)
    storage.set_trial_user_attr(1, "owner", "other-machine/1/abc")
    storage.record_heartbeat(1)
    driver = sweeper.start(*n_trials(1), "hydra.sweeper.heartbeat=1")
    driver_waits = threading.Event()

    def beat():  # as the other machine does, until it falls silent
        while not driver_waits.wait(0.3):
            storage.record_heartbeat(1)

    with ThreadPoolExecutor(1) as machine:
        machine.submit(beat)
        out = ""
        for line in driver.stdout:
            out += line
            if "waiting for 1 trial" in line:
                driver_waits.set()
        waited = driver_waits.is_set()
        driver_waits.set()
    assert (driver.wait(), waited) == (0, True), out
    assert len(read_starts(trial_folder(sweeper, 0))) == 2


def add_stored_trial(sweeper: Sweeper, params: dict[str, object], distributions: dict[str, object]):
    """Write a RUNNING trial without an owner into the study's database, as its writer could."""
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/study.db"
    study = optuna.load_study(study_name="s", storage=url)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions
        )
    )


def test_stored_trial_gives_only_values_of_the_search_space(finished_study):
    sweeper, choice = finished_study, optuna.distributions.CategoricalDistribution
    lr = "algo.optimizer.lr"
    interval = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    hostile = {
        "env.id": "evilmod:X-v0",
        "tracking.uri": "http://stranger",
        "hydra.run.dir": "elsewhere",
        "trust": "[evilmod]",
        "+hydra.job_logging.handlers.file.filename": "elsewhere.log",
    }
    add_stored_trial(
        sweeper,
        {lr: 0.001, **hostile},
        {lr: interval, **{key: choice([value]) for key, value in hostile.items()}},
    )
    wider = optuna.distributions.FloatDistribution(1e-4, 9, log=True)
    add_stored_trial(sweeper, {lr: 5.0}, {lr: wider})
    url = f"sqlite:///{sweeper.folder}/outputs/sweeps/s/study.db"
    study = optuna.load_study(study_name="s", storage=url)
    study.enqueue_trial({lr: 7.0, "trust": "[evilmod]"})
    study.enqueue_trial({lr: "0.001 hydra.run.dir=elsewhere"})
    code, out = sweeper(*n_trials(5))
    assert code == 2, out  # the code of the refused trials
    overrides = json.loads((trial_folder(sweeper, 1) / "config.yaml").read_text())
    assert not overrides.keys() & hostile.keys() and overrides[lr] == "0.001"
    assert [line for line in out.splitlines() if "trust" in line and "trial 1:" in line]
    states = [trial.state for trial in read_trials(sweeper)]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 3
    assert [len(read_starts(trial_folder(sweeper, number))) for number in range(5)] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert all(lr in trial.user_attrs["cause"] for trial in read_trials(sweeper)[2:])
    table = (sweeper.folder / "outputs" / "sweeps" / "s" / "results.csv").read_text()
    assert "evilmod" not in table and "elsewhere" not in table
