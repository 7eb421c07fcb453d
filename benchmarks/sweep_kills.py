"""Kill runs and drivers of one study at random, and check that no trial is lost or repeated.

    python benchmarks/sweep_kills.py [--trials 40] [--trial-kills 20] [--driver-kills 3]

The trials are fake runs (tests/sweep/fake_run.py); the kills are SIGKILLs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna
from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parents[1]
FAKE_RUN = ROOT / "tests" / "sweep" / "fake_run.py"
LR = "algo.optimizer.lr"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--trial-kills", type=int, default=20)
    parser.add_argument("--driver-kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kills = ["trial"] * args.trial_kills + ["driver"] * args.driver_kills
    rng.shuffle(kills)
    with tempfile.TemporaryDirectory() as folder:
        start_time = time.monotonic()
        done = Counter(campaign(Path(folder), args.trials, kills, rng))
        return report(Path(folder), args.trials, done, time.monotonic() - start_time)


def campaign(folder: Path, trials: int, kills: list[str], rng: random.Random) -> list[str]:
    """Run the study to its end; return the kills that hit a process."""
    hit: list[str] = []
    driver = start(folder, trials)
    while (code := driver.poll()) is None or code == -signal.SIGKILL:
        if code is not None:
            driver = start(folder, trials)
        time.sleep(rng.uniform(0.3, 1.5))
        target = kills[len(hit)] if len(hit) < len(kills) else None
        if target == "driver" and newest_processes(folder):
            driver.kill()
            driver.wait()
            hit.append(target)
        elif target == "trial":
            alive = [pid for pid in newest_processes(folder) if is_alive(pid)]
            if alive:
                os.kill(rng.choice(alive), signal.SIGKILL)
                hit.append(target)
    print(f"the last driver exited with {driver.returncode}")
    return hit


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "run.py"), "-m", f"{LR}=tag(log,interval(1e-4,1e-2))"]
    settings = [f"n_trials={trials}", "n_jobs=2", "study_name=s"]
    settings.append(f"command=['{sys.executable}','{FAKE_RUN}']")
    return subprocess.Popen(
        [
            *command,
            *(f"hydra.sweeper.{setting}" for setting in settings),
            "~hydra.callbacks.parent_run",
        ],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "FAKE_RUN_STEP_SECONDS": "0.1", "OMP_NUM_THREADS": "1"},
        stdout=open(folder / "log", "ab"),
        stderr=subprocess.STDOUT,
    )


def newest_processes(folder: Path) -> list[int]:
    files = folder.glob("outputs/sweeps/s/*/starts.txt")
    return [int(file.read_text().splitlines()[-1].split()[1]) for file in files]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def report(folder: Path, trial_count: int, kills: Counter[str], seconds: float) -> int:
    url = f"sqlite:///{folder}/outputs/sweeps/s/study.db"
    trials = optuna.load_study(study_name="s", storage=url).trials
    states = Counter(trial.state.name for trial in trials)
    values = {trial.params[LR] for trial in trials}
    first_steps = [
        [int(line.split()[0]) for line in (file / "starts.txt").read_text().splitlines()]
        for file in (folder / "outputs" / "sweeps" / "s").iterdir()
        if (file / "starts.txt").exists()
    ]
    root = folder / "outputs" / "sweeps" / "s"
    configs = [
        json.loads((root / str(trial.number) / "config.yaml").read_text()) for trial in trials
    ]
    mixed = sum(float(a[LR]) != b.params[LR] for a, b in zip(configs, trials, strict=True))
    restarts = sum(step == 0 for steps in first_steps for step in steps[1:])
    print(f"{kills['trial']} trials and {kills['driver']} drivers killed in {seconds:.0f} s")
    print(
        f"{len(trials)} trials of {trial_count}: {dict(states)}; {len(values)} different parameter values"
    )
    print(f"{mixed} folders with another trial's parameters")
    print(
        f"{len(first_steps)} folders, {sum(map(len, first_steps))} processes,"
        f" {restarts} restarts without a checkpoint"
    )
    good = (
        mixed == 0
        and len(trials)
        == len(values)
        == len(first_steps)
        == states[TrialState.COMPLETE.name]
        == trial_count
    )
    print("passed" if good else (folder / "log").read_text()[-3000:])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
