"""A fake training run that takes a second. It writes the files of a real run and learns nothing.

    python fake_run.py key=value ... hydra.run.dir=FOLDER

The return at step s is `(lr + seed) * s`. Every start appends a line to FOLDER/starts.txt:
first step, process ID, OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES.

Environment variables:
    FAKE_RUN_STEP_SECONDS: duration of a step (0).
    FAKE_RUN_STEPS: number of steps (10).
    FAKE_RUN_METRIC: name of the logged metric (eval/return).
    FAKE_RUN_FAIL_SEED: the run with this seed fails.
    FAKE_RUN_OUT_OF_MEMORY_SEED: the run with this seed runs out of memory.
    FAKE_RUN_EXIT_SEED: the run with this seed exits with code 0 at half its steps.
    FAKE_RUN_DEAF: the runs ignore SIGTERM.
    FAKE_RUN_BAD_METRICS, FAKE_RUN_CUT_RECORD: a run whose folder ends so damages its file at half its steps.
    FAKE_RUN_HOLD_BELOW: a run whose `lr + seed` is smaller waits from half its steps until it is stopped.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from llmdreamer.sweep.run_lock import hold_run_lock
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.tracking.spool import Spool

STEPS = int(os.environ.get("FAKE_RUN_STEPS", "10"))
STEP_SECONDS = float(os.environ.get("FAKE_RUN_STEP_SECONDS", "0"))
METRIC = os.environ.get("FAKE_RUN_METRIC", "eval/return")
HOLD_BELOW = float(os.environ.get("FAKE_RUN_HOLD_BELOW", "-inf"))


def main() -> None:
    overrides = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder = Path(overrides.pop("hydra.run.dir").strip("\"'"))
    with hold_run_lock(folder):
        run(folder, overrides)


def run(folder: Path, overrides: dict[str, str]) -> None:
    saved_config = folder / "config.yaml"
    checkpoints = sorted((folder / "checkpoints").glob("step-*.pt"))
    resumes = "resume" in overrides
    first_step = int(checkpoints[-1].name[5:17]) if resumes and checkpoints else 0
    config = json.loads(saved_config.read_text()) if resumes else overrides
    saved_config.write_text(json.dumps(config))
    record_start(folder, first_step)
    fail_if_asked(config.get("seed"))
    record = RunRecord(
        "", "", "", {"algo.total_steps": STEPS, "env.action_repeat": 1}, {}, time.time()
    )
    save(record, RunFiles(folder).run_record)
    take_steps(folder, config, first_step)
    record.status, record.ended = "FINISHED", time.time()
    save(record, RunFiles(folder).run_record)


def record_start(folder: Path, first_step: int) -> None:
    threads, devices = (os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"))
    with open(folder / "starts.txt", "a") as file:
        file.write(f"{first_step} {os.getpid()} {threads} {devices}\n")


def fail_if_asked(seed: str | None) -> None:
    if seed == os.environ.get("FAKE_RUN_FAIL_SEED"):
        sys.exit("lr is invalid")
    if seed == os.environ.get("FAKE_RUN_OUT_OF_MEMORY_SEED"):
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        bytearray(2**31)


def damage_if_asked(folder: Path) -> None:
    if folder.name.endswith(os.environ.get("FAKE_RUN_BAD_METRICS", " ")):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"env_step": \n')
    if folder.name.endswith(os.environ.get("FAKE_RUN_CUT_RECORD", " ")):
        RunFiles(folder).run_record.write_text('{"uri": ')
        sys.exit(0)


def take_steps(folder: Path, config: dict[str, str], first_step: int) -> None:
    """Log a value and write a checkpoint each step; on SIGTERM exit with 143 after the step."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    if "FAKE_RUN_DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spool = Spool(folder / "metrics.jsonl")
    value = float(config.get("algo.optimizer.lr", 1)) + float(config.get("seed", 0))
    for step in range(first_step + 1, STEPS + 1):
        time.sleep(STEP_SECONDS)
        spool.append({METRIC: value * step}, step)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"step-{step:012d}-{0:016x}.pt").touch()
        if step == STEPS // 2 and config.get("seed") == os.environ.get("FAKE_RUN_EXIT_SEED"):
            os._exit(0)  # no cleanup, as from code of an environment
        if step == STEPS // 2:
            damage_if_asked(folder)
        while not signals and step >= STEPS // 2 and value < HOLD_BELOW:
            time.sleep(0.01)
        if signals:
            sys.exit(143)


main()
