"""One run in a queue that preempts, as a job of submitit: warned by SIGUSR1, requeued, gone on with.

    python benchmarks/submitit_requeue.py [--warnings 2] [--without-twin]

By submitit's local executor, which has a queue of one job and requeues as Slurm does. The job is warned
whenever its run has written a new checkpoint. At the end its curves are held against those of a twin
that nobody disturbed: on a CPU, in CartPole, they must be the same to the bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import submitit
from submitit.helpers import DelayedSubmission

from llmdreamer.tracking.spool import read

ROOT = Path(__file__).resolve().parents[1]
# A row for each update: a mean of several would be of others after a warning.
RUN = ["backbone=gru", "model=XS", "algo.total_steps=96", "algo.per_rank_batch_size=2"]
RUN += [
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.horizon=3",
    "checkpoint.every=16",
]
RUN += [
    "eval.every=0",
    "eval.final_episodes=2",
    "eval.open_loop=0",
    "tracking.log_every=1",
    "threads=1",
]


@dataclass
class Queued:
    """`python run.py resume=auto ...`, which is handed the warning and is the same job again."""

    arguments: list[str]

    def __call__(self) -> int:
        command = [sys.executable, str(ROOT / "run.py"), "resume=auto", *self.arguments]
        self.process = subprocess.Popen(command)
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        self.process.send_signal(signal.SIGUSR1)
        # Not `wait`: `__call__` is inside it, and we are its thread.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Queued(self.arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warnings", type=int, default=2)
    parser.add_argument("--without-twin", action="store_true")
    given = parser.parse_args()
    os.environ |= {"SUBMITIT_PREEMPT_SIGNAL": "USR1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        began = time.monotonic()
        code, warned = in_a_queue(Path("jobs"), given.warnings)
        print(f"warned at {', '.join(warned)}; the job ended with {code}", flush=True)
        steps, curve = losses(Path("outputs/queued"))
        print(
            f"{len(steps)} rows up to env step {max(steps)}, {len({*steps})} of them different steps"
        )
        good = code == 0 and len(warned) == given.warnings and len({*steps}) == len(steps)
        if not given.without_twin:
            Queued([*RUN, "run_name=twin"])()
            same = (steps, curve) == losses(Path("outputs/twin"))
            print("as the undisturbed twin, to the bit" if same else "not as the undisturbed twin")
            good = good and same
        print(
            f"{time.monotonic() - began:.0f} s; {'as it must be' if good else 'NOT as it must be'}"
        )
    return 0 if good else 1


def in_a_queue(jobs: Path, warnings: int) -> tuple[int, list[str]]:
    """The exit code of the job's last life, and the checkpoints after which it was warned."""
    executor = submitit.AutoExecutor(folder=jobs, cluster="local")
    executor.update_parameters(timeout_min=120)
    job = executor.submit(Queued([*RUN, "run_name=queued"]))
    warned: list[str] = []
    while not job.done():
        time.sleep(0.1)
        newest = max(
            (one.name for one in Path("outputs/queued/checkpoints").glob("step-*")), default=""
        )
        if len(warned) < warnings and newest > (warned[-1] if warned else ""):
            # The task below the controller, whose process is the job's number, gets Slurm's signal.
            (task,) = psutil.Process(int(job.job_id)).children()
            task.send_signal(signal.SIGUSR1)
            task.wait()
            # What the run wrote as it left is no new life's checkpoint.
            warned.append(
                max(one.name for one in Path("outputs/queued/checkpoints").glob("step-*"))
            )
    return job.result(), warned


def losses(folder: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in read(folder / "metrics.jsonl") if "world_model/loss" in row.metrics]
    return [row.env_step for row in rows], [row.metrics["world_model/loss"] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
