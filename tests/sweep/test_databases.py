"""Drivers that share a study in PostgreSQL or MySQL, on a local server if one is installed."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from servers import DRIVERS, DatabaseServer, install_hint, run_server
from sweep_helpers import Sweeper, checkpoints, open_concurrently, read_starts, wait_until

LR = "algo.optimizer.lr=tag(log,interval(1e-4,1e-2))"


@pytest.fixture(params=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest):
    """Yield a server with an empty database."""
    kind = request.param
    pytest.importorskip(DRIVERS[kind], reason=f"no driver: pip install 'llmdreamer[{kind}]'")
    if (reason := install_hint(kind)) is not None:
        pytest.skip(reason)
    with run_server(kind) as server:
        yield server


def test_two_drivers_of_a_new_study_share_n_trials(server: DatabaseServer, sweeper: Sweeper):
    command = ["hydra.sweeper.study_name=s", LR, "hydra.sweeper.n_trials=5"]
    command.append(f"hydra.sweeper.storage={server.url}")
    drivers = [sweeper.start(*command, FAKE_RUN_STEP_SECONDS="0.05") for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    trials = optuna.load_study(study_name="s", storage=server.url).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    folder = sweeper.folder / "outputs" / "sweeps" / "s"
    assert [len(read_starts(folder / str(number))) for number in range(5)] == [1] * 5
    assert len({trial.params["algo.optimizer.lr"] for trial in trials}) == 5


def test_server_that_restarts_in_mid_sweep_costs_nothing(server: DatabaseServer, sweeper: Sweeper):
    command = [
        "hydra.sweeper.study_name=s",
        LR,
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
    ]
    command += [f"hydra.sweeper.storage={server.url}", "hydra.sweeper.heartbeat=1"]
    driver = sweeper.start(*command, FAKE_RUN_STEP_SECONDS="0.5")
    folder = sweeper.folder / "outputs" / "sweeps" / "s"
    wait_until(lambda: all(checkpoints(folder / str(number)) for number in (0, 1)))
    server.stop()
    # The first two runs end meanwhile, and their driver cannot record it.
    wait_until(lambda: all(len(checkpoints(folder / str(number))) == 10 for number in (0, 1)))
    time.sleep(3)
    server.start()
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    assert "retrying" in out and "Traceback" not in out
    trials = optuna.load_study(study_name="s", storage=server.url).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [len(read_starts(folder / str(number))) for number in range(4)] == [1] * 4


def test_new_database_is_opened_by_eight_processes_at_once(server: DatabaseServer, tmp_path: Path):
    assert open_concurrently(8, server.url, tmp_path) == [0] * 8


def test_missing_database_server_is_an_error_without_the_password(sweeper: Sweeper):
    pytest.importorskip(
        "psycopg", reason="no driver for PostgreSQL: pip install 'llmdreamer[postgresql]'"
    )
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/x"
    code, out = sweeper(LR, "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage='{url}'")
    assert code == 2
    (line,) = [line for line in out.splitlines() if line.startswith("hydra.sweeper.storage=")]
    assert "secret" not in out
    assert "connection" in line
