"""Two drivers on one study in PostgreSQL: a server of our own on loopback, where there is one."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import optuna
import pytest
from driving import Sweeping, opened_at_once, starts
from optuna.trial import TrialState

LR = "algo.optimizer.lr=tag(log,interval(1e-4,1e-2))"


def found(name: str) -> str | None:
    """A program of the server's: Debian keeps it off the PATH."""
    debians = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debians[-1]) if debians else None)


@pytest.fixture
def server(tmp_path: Path):
    """The URL of an empty database."""
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'psycopg[binary]'")
    programs = {name: found(name) for name in ("initdb", "pg_ctl")}
    if None in programs.values():
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    # PostgreSQL refuses to run as root: in a container, it runs as somebody else.
    user = 65534 if os.geteuid() == 0 else None
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if user is not None:
        os.chown(folder, user, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def command(name: str, *words: str) -> None:
        words = (str(programs[name]), *words)
        subprocess.run(words, user=user, cwd=folder, check=True, capture_output=True, timeout=120)

    data, log = str(folder / "data"), str(folder / "log")
    command("initdb", "-D", data, "-A", "trust", "-U", "me")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    command("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        command("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def test_two_drivers_on_a_fresh_study_share_n_trials(server: str, sweeping: Sweeping):
    command = ["hydra.sweeper.study_name=s", LR, "hydra.sweeper.n_trials=5"]
    command.append(f"hydra.sweeper.storage={server}")
    drivers = [sweeping.start(*command, STANDIN_STEP="0.05") for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    trials = optuna.load_study(study_name="s", storage=server).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    folder = sweeping.folder / "outputs" / "sweeps" / "s"
    assert [len(starts(folder / str(number))) for number in range(5)] == [1] * 5
    assert len({trial.params["algo.optimizer.lr"] for trial in trials}) == 5


def test_eight_processes_open_a_fresh_database_at_once(server: str, tmp_path: Path):
    assert opened_at_once(8, server, tmp_path) == [0] * 8


def test_a_server_that_is_not_there_is_one_line(sweeping: Sweeping):
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'psycopg[binary]'")
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/x"
    code, out = sweeping(LR, "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage='{url}'")
    assert code == 2
    (line,) = [line for line in out.splitlines() if line.startswith("hydra.sweeper.storage=")]
    assert "secret" not in out
    assert "connection" in line
