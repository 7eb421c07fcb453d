"""Measure the cost of a sweep: driver time per trial, idle slots, and growth over a long study.

    python benchmarks/sweep_overhead.py [--trials 40] [--many 200]

The trials are small scripts that import nothing heavy: each sleeps, logs an objective and exits.

1. A grid and a study of trials of no duration in one slot. The driver's time per trial (ask, launch, tell,
   record) is the time between the processes.
2. A study of trials of 3 to 15 seconds in two slots: the load that the driver prints, and the load by the
   trials' own clocks.
3. A study of `--many` trials of no duration in two slots. The driver's open files, threads, memory and CPU
   time are printed as it runs. On an overloaded machine it takes minutes.
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
# Writes what a driver reads of a run: a record of metrics, and the status FINISHED.
TRIAL = """
import json, os, sys, time
start = time.time()
overrides = dict(text.split("=", 1) for text in sys.argv[1:] if "=" in text)
folder = overrides["hydra.run.dir"].strip("'")
fraction = float(overrides.get("algo.optimizer.lr", 0)) / 1e-2
time.sleep(float(os.environ["SECONDS"]) * (1 + 4 * fraction))
os.makedirs(folder + "/tracking", exist_ok=True)
record = {"env_step": 1, "time": time.time(), "metrics": {"eval/return": 1.0}}
with open(folder + "/metrics.jsonl", "w") as file:
    file.write(json.dumps(record) + "\\n")
run = dict(uri="", experiment="", name="", params={}, tags={}, started=start)
with open(folder + "/tracking/run.json", "w") as file:
    json.dump(run | dict(status="FINISHED", ended=time.time()), file)
with open(folder + "/span", "w") as file:
    file.write(f"{start} {time.time()}")
"""


STUDY = "algo.optimizer.lr=interval(1e-4,1e-2)"
# Without site-packages: its hooks would take most of the start-up time.
PYTHON = [sys.executable, "-S", "-E"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--many", type=int, default=200)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    driver_time(args.trials)
    slot_load(args.trials)
    growth(args.many)


def driver_time(trials: int) -> None:
    empty = python_startup(trials)
    print(f"a Python process that does nothing: {1000 * empty:.0f} ms", flush=True)
    study = [STUDY, f"hydra.sweeper.n_trials={trials}"]
    for name, overrides in (("study", study), ("grid", [f"seed=range({trials})"])):
        result = sweep(overrides, 0.0)
        total = max(end for _, end in result.spans) - min(start for start, _ in result.spans)
        inside = sum(end - start for start, end in result.spans)
        own = (total - inside) / (len(result.spans) - 1) - empty
        first, last = next(usage for usage in result.usage if usage.ended), result.usage[-1]
        cpu = (last.cpu_seconds - first.cpu_seconds) / (last.ended - first.ended)
        print(
            f"{name}: {len(result.spans)} trials, {1000 * own:.0f} ms of the driver per trial,"
            f" {1000 * cpu:.0f} ms of CPU time",
            flush=True,
        )


def slot_load(trials: int) -> None:
    result = sweep([STUDY, f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=2"], 3.0)
    busy = sum(end - start for start, end in result.spans)
    *_, other, last = sorted(end for _, end in result.spans)
    # The other slot is not idle after its last trial: nothing is left to start.
    available = 2 * (last - min(start for start, _ in result.spans)) - (last - other)
    print(f"two slots, trials of 3 to 15 s: {printed_load(result.output)}")
    print(
        f"  by the trials' clocks {100 * busy / available:.1f}%, without the start-up of Python",
        flush=True,
    )


def growth(trials: int) -> None:
    print(f"{trials} trials of no duration; the driver after this many trials:", flush=True)
    due = [math.ceil(share * trials) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    printed: list[Usage] = []

    def show(usage: Usage) -> None:
        if not due or usage.ended < due[0]:
            return
        while due and usage.ended >= due[0]:
            del due[0]
        line = f"  {usage.ended}: {usage.files} open files, {usage.threads} threads, {usage.memory:.0f} MB"
        if printed:
            cpu = usage.cpu_seconds - printed[-1].cpu_seconds
            per_trial = cpu / (usage.ended - printed[-1].ended)
            line += f", {1000 * per_trial:.0f} ms of CPU time per trial since"
        printed.append(usage)
        print(line, flush=True)

    sweep([STUDY, f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=2"], 0.0, show)


def python_startup(count: int) -> float:
    """Return the mean seconds of a Python process, from its start to its end."""
    start = time.monotonic()
    for _ in range(count):
        subprocess.run([*PYTHON, "-c", "import json"], check=True)
    return (time.monotonic() - start) / count


class Usage(NamedTuple):
    """Resources of a driver after `ended` trials."""

    ended: int
    files: int
    threads: int
    memory: float  # resident, MB
    cpu_seconds: float


@dataclass
class SweepResult:
    spans: list[tuple[float, float]]  # start and end of each trial, by its own clock
    output: str  # of the driver
    usage: list[Usage]  # while it ran


def sweep(
    overrides: list[str], seconds: float, observe: Callable[[Usage], None] = lambda _: None
) -> SweepResult:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "trial.py").write_text(TRIAL)
        program = f"hydra.sweeper.command=[{','.join(map(repr, [*PYTHON, f'{folder}/trial.py']))}]"
        command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides, program]
        usage = []
        with open(folder / "log", "w+") as log:
            driver = psutil.Popen(
                [*command, "hydra.sweeper.study_name=s", "~hydra.callbacks.parent_run"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "SECONDS": str(seconds)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            while driver.poll() is None:
                time.sleep(0.5)
                ended = len([*folder.glob("outputs/**/span")])
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    memory, times = driver.memory_info().rss / 1e6, driver.cpu_times()
                    files, threads = driver.num_fds(), driver.num_threads()
                    usage.append(Usage(ended, files, threads, memory, times.user + times.system))
                    observe(usage[-1])
            log.seek(0)
            output = log.read()
        if driver.returncode != 0:
            raise SystemExit(output[-2000:])
        texts = [path.read_text() for path in folder.glob("outputs/**/span")]
    return SweepResult([(float(a), float(b)) for a, b in map(str.split, texts)], output, usage)


def printed_load(output: str) -> str:
    match = re.search(r"^\d+ slots for .* busy.*$", output, re.MULTILINE)
    assert match is not None, output
    return match[0]


if __name__ == "__main__":
    main()
