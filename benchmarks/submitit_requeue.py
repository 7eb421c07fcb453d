"""Preempt one run that is a job of submitit: it gets SIGUSR1, is requeued, and resumes.

    python benchmarks/submitit_requeue.py [--preemptions 2] [--without-twin]

It uses submitit's local executor, which requeues jobs as Slurm does. The job gets the signal whenever its
run has written a new checkpoint. At the end, its loss curve is compared with that of an undisturbed twin.
On a CPU, in CartPole, the two must be equal to the bit.
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

from llmdreamer.tracking.spool import read_metrics

ROOT = Path(__file__).resolve().parents[1]
# Log each update: a mean over several updates would cover other updates after a preemption.
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
    "eval.open_loop_windows=0",
    "tracking.log_every=1",
    "threads=1",
]


@dataclass
class QueuedRun:
    """Runs `python run.py resume=auto ...`. On preemption it forwards the signal and requeues itself."""

    arguments: list[str]

    def __call__(self) -> int:
        command = [sys.executable, str(ROOT / "run.py"), "resume=auto", *self.arguments]
        self.process = subprocess.Popen(command)
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        self.process.send_signal(signal.SIGUSR1)
        # Not `wait`: `__call__` of this thread is inside it.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(QueuedRun(self.arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preemptions", type=int, default=2)
    parser.add_argument("--without-twin", action="store_true")
    args = parser.parse_args()
    os.environ |= {"SUBMITIT_PREEMPT_SIGNAL": "USR1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        start_time = time.monotonic()
        code, preempted = run_in_queue(Path("jobs"), args.preemptions)
        print(
            f"preempted at {', '.join(preempted)}; the job ended with exit code {code}", flush=True
        )
        steps, curve = losses(Path("outputs/queued"))
        print(f"{len(steps)} records up to env step {max(steps)}, {len({*steps})} different steps")
        good = code == 0 and len(preempted) == args.preemptions and len({*steps}) == len(steps)
        if not args.without_twin:
            QueuedRun([*RUN, "run_name=twin"])()
            equal = (steps, curve) == losses(Path("outputs/twin"))
            print("equal to the undisturbed twin" if equal else "NOT equal to the undisturbed twin")
            good = good and equal
        print(f"{time.monotonic() - start_time:.0f} s; {'passed' if good else 'FAILED'}")
    return 0 if good else 1


def run_in_queue(jobs: Path, preemptions: int) -> tuple[int, list[str]]:
    """Return the exit code of the job's last process, and the checkpoints at which it was preempted."""
    executor = submitit.AutoExecutor(folder=jobs, cluster="local")
    executor.update_parameters(timeout_min=120)
    job = executor.submit(QueuedRun([*RUN, "run_name=queued"]))
    preempted: list[str] = []
    while not job.done():
        time.sleep(0.1)
        newest = max(
            (path.name for path in Path("outputs/queued/checkpoints").glob("step-*")), default=""
        )
        if len(preempted) < preemptions and newest > (preempted[-1] if preempted else ""):
            # The job ID is the controller's process ID. Its child, the task, gets the signal, as under Slurm.
            (task,) = psutil.Process(int(job.job_id)).children()
            task.send_signal(signal.SIGUSR1)
            task.wait()
            # The checkpoint that the run wrote on the signal does not count as a new one.
            preempted.append(
                max(path.name for path in Path("outputs/queued/checkpoints").glob("step-*"))
            )
    return job.result(), preempted


def losses(folder: Path) -> tuple[list[int], list[float]]:
    records = read_metrics(folder / "metrics.jsonl")
    records = [record for record in records if "world_model/loss" in record.metrics]
    values = [record.metrics["world_model/loss"] for record in records]
    return [record.env_step for record in records], values


if __name__ == "__main__":
    sys.exit(main())
