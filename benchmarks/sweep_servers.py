"""Run several drivers of one study, with a database server and an MLflow server, as on a cluster.

    python benchmarks/sweep_servers.py [--database postgresql|mysql] [--drivers 3] [--trials 8] [--fake-runs]

Starts a database server (Debian's postgresql or mariadb-server, with psycopg or pymysql) for the study and
an MLflow server for the records, both on localhost. Then all drivers start at once on a new study. One
driver gets SIGKILL as soon as one of its trials has a checkpoint. The trials are real runs of a GRU; some
may be pruned. At the end it counts the trials in Optuna and the runs in MLflow.

With `--fake-runs` the trials are fake runs (tests/sweep/fake_run.py) that log nothing to MLflow.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweep"))

from servers import free_port, run_server

ROOT = Path(__file__).resolve().parents[1]
FAKE_RUN = ROOT / "tests" / "sweep" / "fake_run.py"
SMALL = ["backbone=gru", "algo.total_steps=96", "checkpoint.every=24", "eval.every=32"]
STUDY = ["sweeps=smoke", "hydra.sweeper.study_name=s", "hydra.sweeper.heartbeat=5"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("postgresql", "mysql"), default="postgresql")
    parser.add_argument("--drivers", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--fake-runs", action="store_true")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        run_server(args.database) as server,
        mlflow_server(Path(folder)) as uri,
    ):
        storage = server.url
        print(f"study in {storage}, runs in {uri}", flush=True)
        command = [*STUDY, *SMALL, f"hydra.sweeper.n_trials={args.trials}"]
        command += [f"hydra.sweeper.storage='{storage}'", f"tracking.uri={uri}"]
        if args.fake_runs:
            command.append(f"hydra.sweeper.command=['{sys.executable}','{FAKE_RUN}']")
        start_time = time.monotonic()
        codes = run_drivers(Path(folder), command, args.drivers)
        print(f"exit codes {codes} after {time.monotonic() - start_time:.0f} s", flush=True)
        good = check_study(storage, args.trials, args.drivers)
        good = (args.fake_runs or check_mlflow(uri, args.trials)) and good
        good = good and sorted(codes) == [-signal.SIGKILL] + [0] * (args.drivers - 1)
        print("passed" if good else "FAILED")
    return 0 if good else 1


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server; yield its address once it answers."""
    uri = f"http://127.0.0.1:{(port := free_port())}"
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port),
             "--artifacts-destination", str(folder / "artifacts")],
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=30)
                break
            except OSError:
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def run_drivers(folder: Path, command: list[str], count: int) -> list[int]:
    """Run the drivers, kill one of them, and return their exit codes."""
    drivers = []
    for number in range(count):
        with open(folder / f"log-{number}", "wb") as log:
            drivers.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "run.py"), "-m", *command],
                    cwd=folder,
                    env={"FAKE_RUN_STEP_SECONDS": "0.3"} | os.environ | {"PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    while all(driver.poll() is None for driver in drivers):
        time.sleep(0.2)
        if (busy := next(filter(partial(has_checkpoint, folder), range(count)), None)) is not None:
            drivers[busy].kill()
            print("killed a driver whose trial has a checkpoint", flush=True)
            break
    return [driver.wait() for driver in drivers]


def has_checkpoint(folder: Path, driver: int) -> bool:
    """Return True if the newest trial in the driver's log (`start trial 3 ...`) has a checkpoint."""
    *_, last = (folder / f"log-{driver}").read_text().rpartition("start trial ")
    trial = folder / "outputs" / "sweeps" / "s" / (last.split() or ["none"])[0]
    return any(trial.glob("checkpoints/step-*"))


def check_study(storage: str, trial_count: int, drivers: int) -> bool:
    trials = optuna.load_study(study_name="s", storage=storage).trials
    states = Counter(trial.state.name for trial in trials)
    owners = Counter(trial.user_attrs["owner"] for trial in trials)
    print(
        f"{len(trials)} trials of {trial_count}: {dict(states)};"
        f" of each of {drivers} drivers: {[*owners.values()]}"
    )
    different = len({tuple(trial.params.values()) for trial in trials})
    print(f"{different} different parameter sets")
    ended = {TrialState.COMPLETE, TrialState.PRUNED}
    return len(trials) == different == trial_count and {trial.state for trial in trials} <= ended


def check_mlflow(uri: str, trial_count: int) -> bool:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [item for item in client.search_experiments() if item.name == "llmdreamer"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    states = Counter(run.info.status for run in children)
    print(f"MLflow: {len(runs) - len(children)} sweep, {len(children)} child runs: {dict(states)}")
    # A process killed before its first checkpoint leaves a separate run; the newest run is the trial's.
    oldest_first = sorted(children, key=lambda run: run.info.start_time)
    newest = {run.data.tags["trial"]: run for run in oldest_first}
    valued = sum("eval/return" in run.data.metrics for run in newest.values())
    print(f"{len(newest)} different trials, {valued} with a return")
    once = len(newest) == valued == trial_count
    return once and len(parents) == 1 == len(runs) - len(children) and "RUNNING" not in states


if __name__ == "__main__":
    sys.exit(main())
