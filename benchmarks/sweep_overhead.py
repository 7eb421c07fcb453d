"""What a sweep itself costs: a driver's time per trial, slots that wait, what a long study piles up.

    python benchmarks/sweep_overhead.py [--trials 40] [--many 200]

The trials are stand-ins that import nothing: such a process is started, sleeps, logs an objective and
is gone. First a grid and a study of trials of no length in one slot: a driver's own time (ask, launch,
tell, record) is what lies between the processes and beside them. Then a study of trials of 3 to 15
seconds in two slots: what the driver prints of their load, and what their own clocks say. Last a study
of `--many` trials of no length in two slots, in whose course the driver's open files, threads, memory and
processor time are read, and printed at once: on a crowded machine it takes minutes to get through.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
# What a run leaves that a driver reads: a row of metrics and the word that it has finished.
TRIAL = """
import json, os, sys, time
began = time.time()
given = dict(one.split("=", 1) for one in sys.argv[1:] if "=" in one)
folder = given["hydra.run.dir"].strip("'")
drawn = float(given.get("algo.optimizer.lr", 0)) / 1e-2
time.sleep(float(os.environ["LENGTH"]) * (1 + 4 * drawn))
os.makedirs(folder + "/tracking", exist_ok=True)
row = {"env_step": 1, "time": time.time(), "metrics": {"eval/return": 1.0}}
with open(folder + "/metrics.jsonl", "w") as file:
    file.write(json.dumps(row) + "\\n")
wanted = dict(uri="", experiment="", name="", params={}, tags={}, started=began)
with open(folder + "/tracking/run.json", "w") as file:
    json.dump(wanted | dict(status="FINISHED", ended=time.time()), file)
with open(folder + "/lived", "w") as file:
    file.write(f"{began} {time.time()}")
"""


STUDY = "algo.optimizer.lr=interval(1e-4,1e-2)"
# Without site-packages, whose own hooks take longer to start than all else.
PYTHON = [sys.executable, "-S", "-E"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--many", type=int, default=200)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    own_time(given.trials)
    waiting(given.trials)
    growth(given.many)


def own_time(trials: int) -> None:
    empty = python_alone(trials)
    print(f"a process of Python that does nothing: {1000 * empty:.0f} ms", flush=True)
    study = [STUDY, f"hydra.sweeper.n_trials={trials}"]
    for name, asked in (("study", study), ("grid", [f"seed=range({trials})"])):
        done = sweep(asked, 0.0)
        between = max(end for _, end in done.lives) - min(began for began, _ in done.lives)
        inside = sum(end - began for began, end in done.lives)
        own = (between - inside) / (len(done.lives) - 1) - empty
        first, last = next(one for one in done.held if one.ended), done.held[-1]
        processor = (last.processor - first.processor) / (last.ended - first.ended)
        print(
            f"{name}: {len(done.lives)} trials, {1000 * own:.0f} ms of the driver for each,"
            f" {1000 * processor:.0f} ms of its processor time",
            flush=True,
        )


def waiting(trials: int) -> None:
    done = sweep([STUDY, f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=2"], 3.0)
    busy = sum(end - began for began, end in done.lives)
    *_, other, last = sorted(end for _, end in done.lives)
    # Once the other slot's last trial has ended, there is nothing left for it.
    wanted = 2 * (last - min(began for began, _ in done.lives)) - (last - other)
    print(f"two slots, trials of 3 to 15 s: {load(done.out)}")
    print(
        f"  by the trials' own clocks {100 * busy / wanted:.1f}%, start of Python excluded",
        flush=True,
    )


def growth(trials: int) -> None:
    print(f"{trials} trials of no length; of the driver, after so many of them:", flush=True)
    due = [math.ceil(share * trials) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    before: list[Held] = []

    def tell(one: Held) -> None:
        if not due or one.ended < due[0]:
            return
        while due and one.ended >= due[0]:
            del due[0]
        line = f"  {one.ended}: {one.files} open files, {one.threads} threads, {one.memory:.0f} MB"
        if before:
            each = (one.processor - before[-1].processor) / (one.ended - before[-1].ended)
            line += f", {1000 * each:.0f} ms of processor time for each since"
        before.append(one)
        print(line, flush=True)

    sweep([STUDY, f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=2"], 0.0, tell)


def python_alone(count: int) -> float:
    """Seconds from starting a Python to its end, as the mean of `count`."""
    began = time.monotonic()
    for _ in range(count):
        subprocess.run([*PYTHON, "-c", "import json"], check=True)
    return (time.monotonic() - began) / count


class Held(NamedTuple):
    """What a driver holds, and has used, after so many trials."""

    ended: int
    files: int
    threads: int
    memory: float  # resident, MB
    processor: float  # seconds


@dataclass
class Swept:
    lives: list[tuple[float, float]]  # of each trial, by its own clock
    out: str  # what the driver printed
    held: list[Held]  # on the way


def sweep(asked: list[str], length: float, tell: Callable[[Held], None] = lambda _: None) -> Swept:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "trial.py").write_text(TRIAL)
        program = f"hydra.sweeper.command=[{','.join(map(repr, [*PYTHON, f'{folder}/trial.py']))}]"
        command = [sys.executable, str(ROOT / "run.py"), "-m", *asked, program]
        held = []
        with open(folder / "log", "w+") as log:
            driver = psutil.Popen(
                [*command, "hydra.sweeper.study_name=s", "~hydra.callbacks.parent_run"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "LENGTH": str(length)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            while driver.poll() is None:
                time.sleep(0.5)
                ended = len([*folder.glob("outputs/**/lived")])
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    memory, times = driver.memory_info().rss / 1e6, driver.cpu_times()
                    files, threads = driver.num_fds(), driver.num_threads()
                    held.append(Held(ended, files, threads, memory, times.user + times.system))
                    tell(held[-1])
            log.seek(0)
            out = log.read()
        if driver.returncode != 0:
            raise SystemExit(out[-2000:])
        texts = [path.read_text() for path in folder.glob("outputs/**/lived")]
    return Swept([(float(a), float(b)) for a, b in map(str.split, texts)], out, held)


def load(out: str) -> str:
    found = re.search(r"^\d+ slots for .* busy.*$", out, re.MULTILINE)
    assert found is not None, out
    return found[0]


if __name__ == "__main__":
    main()
