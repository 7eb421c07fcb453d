"""What a sweep itself costs: a driver's time per trial, beside the processes it waits for.

    python benchmarks/sweep_overhead.py [--trials 40]

The trials are stand-ins of no length that import nothing: such a process is started, logs an
objective and is gone. Grid and study are run once; in one slot, so that a driver's own time
(ask, launch, tell, record) is what lies between the processes and beside them. The second part gives
trials of unequal length to two slots, and shows what the driver prints of their load.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a run leaves that a driver reads: a row of metrics and the word that it has finished.
TRIAL = """
import json, os, sys, time
began = time.time()
given = dict(one.split("=", 1) for one in sys.argv[1:] if "=" in one)
folder = given["hydra.run.dir"].strip("'")
time.sleep(float(os.environ["LENGTH"]) * (1 + int(given["seed"]) % 7))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    trials = parser.parse_args().trials
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    empty = python_alone(trials)
    print(f"a process of Python that does nothing: {1000 * empty:.0f} ms")
    study = ["algo.optimizer.lr=interval(1e-4,1e-2)", f"hydra.sweeper.n_trials={trials}"]
    seeds = [f"seed=range({trials})"]
    for name, asked in (("study", study), ("grid", seeds)):
        lived, out = sweep(asked, 0.0)
        between = max(end for _, end in lived) - min(began for began, _ in lived)
        inside = sum(end - began for began, end in lived)
        own = (between - inside) / (len(lived) - 1) - empty
        print(
            f"{name}: {len(lived)} trials, {1000 * own:.0f} ms of the driver for each; {load(out)}"
        )
    lived, out = sweep([*seeds, "hydra.sweeper.n_jobs=2"], 0.25)
    busy = sum(end - began + empty for began, end in lived)
    between = max(end for _, end in lived) - min(began for began, _ in lived) + empty
    print(f"two slots, trials of 0.25 to 1.75 s: {load(out)}")
    print(f"  by the trials' own clocks {100 * busy / (2 * between):.1f}%")


def python_alone(count: int) -> float:
    """Seconds from starting a Python to its end, as the mean of `count`."""
    began = time.monotonic()
    for _ in range(count):
        subprocess.run([sys.executable, "-c", "import json"], check=True)
    return (time.monotonic() - began) / count


def sweep(asked: list[str], length: float) -> tuple[list[tuple[float, float]], str]:
    """When each trial lived, by its own clock, and what the driver printed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "trial.py").write_text(TRIAL)
        program = f"hydra.sweeper.command=['{sys.executable}','{folder}/trial.py']"
        command = [sys.executable, str(ROOT / "run.py"), "-m", *asked, program]
        done = subprocess.run(
            [*command, "hydra.sweeper.study_name=s", "~hydra.callbacks.llmdreamer"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "LENGTH": str(length)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit((done.stdout + done.stderr)[-2000:])
        texts = [path.read_text() for path in folder.glob("outputs/**/lived")]
    lives = [(float(began), float(end)) for began, end in map(str.split, texts)]
    return lives, done.stdout


def load(out: str) -> str:
    found = re.search(r"^\d+ slots for .* at work$", out, re.MULTILINE)
    assert found is not None, out
    return found[0]


if __name__ == "__main__":
    main()
