"""Fault campaigns against one run, too long for a test. Their figures are in docs/log.md.

    python benchmarks/faults.py kills [--kills 100] [--steps 2400] [--backbone gru] [--env cartpole]
        [--seed 0]
    python benchmarks/faults.py memory [--steps 200000]
    python benchmarks/faults.py replay [--steps 5000000]
    python benchmarks/faults.py trials [--trials 200]
    python benchmarks/faults.py saving [--saves 5]

- `kills`: SIGKILL, then the same command, many times; the result is compared with an uninterrupted run. A
  process is killed after at most twice the CPU time that it needs to its first checkpoint.
- `memory`: memory, open files and threads of a long run.
- `replay`: the same for a growing replay on disk.
- `trials`: the same for the driver of a study of fake runs.
- `saving`: how long a checkpoint blocks the default run, in wall time and in CPU time of the training thread.

The commands and their environment are those of tests/faults.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hydra
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
os.environ["LLMDREAMER_ROOT"] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("faults", "shared"))]

from campaigns import parse
from run_process import Command
from tiny_run import differing_paths, folder_contents, metric_records, saved_trainer

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import load, register
from llmdreamer.replay import SequenceReplay
from llmdreamer.training.trainer import Trainer, check_finite
from llmdreamer.types import EnvSpec, TimeStep
from llmdreamer.utils.device import prepare

TIMEOUT_SECONDS = 7200.0  # of any step, on an overloaded machine


def main() -> int:
    args = parse(
        __doc__,
        {
            "kills": {"kills": 100, "steps": 2400, "backbone": "gru", "env": "cartpole", "seed": 0},
            "memory": {"steps": 200_000},
            "replay": {"steps": 5_000_000},
            "trials": {"trials": 200},
            "saving": {"saves": 5},
        },
    )
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        if args.campaign == "kills":
            chosen = [f"backbone={args.backbone}", f"env={args.env}"]
            overrides = (*chosen, f"algo.total_steps={args.steps}")
            return kills(folder, args.kills, overrides, random.Random(args.seed))
        if args.campaign == "trials":
            return trials(folder, args.trials)
        if args.campaign == "saving":
            return saving(folder, args.saves)
        return (
            memory(folder, args.steps) if args.campaign == "memory" else replay(folder, args.steps)
        )
    finally:
        shutil.rmtree(folder)


def kills(folder: Path, kill_count: int, overrides: tuple[str, ...], rng: random.Random) -> int:
    """Kill one run at random points: while it starts, learns, saves, or truncates files on resume.

    A point is a number of seconds of the process's CPU time, which does not depend on the machine's load.
    """
    command_line = (
        *(*overrides, "run_name=run", "resume=auto"),
        *("checkpoint.every=10", "env.num_envs=2", "algo.optimizer.anneal=0.5", "eval.every=100"),
        *("eval.episodes=1", "replay_ratio=0.25"),
    )
    reference, killed = folder / "reference", folder / "killed"
    for subfolder in (reference, killed):
        subfolder.mkdir()
    start_time = time.monotonic()
    uninterrupted = Command(reference, *command_line)
    uninterrupted.wait_until(
        lambda: newest_step(reference / "outputs" / "run") > 0, TIMEOUT_SECONDS
    )
    longest = 2 * cpu_seconds(uninterrupted)
    assert uninterrupted.wait(TIMEOUT_SECONDS)[0] == 0
    print(f"uninterrupted: {time.monotonic() - start_time:.0f} s", end="; ")
    print(f"to the first checkpoint: {longest / 2:.1f} s of CPU time", flush=True)
    run, hits, processes, code = killed / "outputs" / "run", [], 0, None
    start_time = time.monotonic()
    while code != 0:
        processes += 1
        command = Command(killed, *command_line)
        if len(hits) < kill_count:
            point, before = rng.uniform(0.0, longest), cpu_seconds(command)
            command.wait_until(lambda: cpu_seconds(command) - before >= point, TIMEOUT_SECONDS)  # noqa: B023
            command.send(signal.SIGKILL)
        code = command.wait(TIMEOUT_SECONDS)[0]
        assert code in (0, -signal.SIGKILL), command.log.read_text()
        if code == -signal.SIGKILL:
            drafts = [*run.glob("checkpoints/*.tmp"), *run.glob("best/*.tmp")]
            hits.append((newest_step(run), bool(drafts)))
            print(f"kill {len(hits)}: newest checkpoint {hits[-1][0]}", flush=True)
    steps, drafts = {step for step, _ in hits}, sum(draft for _, draft in hits)
    print(
        f"{len(hits)} kills of {processes} processes, {time.monotonic() - start_time:.0f} s;",
        end=" ",
    )
    print(f"newest checkpoints at {len(steps)} different steps, {min(steps)} to {max(steps)};")
    print(f"{drafts} kills while a checkpoint was being written")
    print(
        f"{len(metric_records(run))} records of metrics; differences from the uninterrupted run:",
        end=" ",
    )
    different = differences(run, reference / "outputs" / "run")
    print(", ".join(different) or "nothing")
    return 1 if different or len(hits) < kill_count else 0


def differences(first: Path, second: Path) -> list[str]:
    """Return the parts of two runs that are not equal byte for byte."""
    parts = [
        f"state {name}" for name in differing_paths(saved_trainer(first), saved_trainer(second))
    ]
    if repr(metric_records(first)) != repr(metric_records(second)):  # in a repr, NaN equals NaN
        parts.append("metrics")
    folders = ("replay", "best")
    parts += [
        name for name in folders if folder_contents(first / name) != folder_contents(second / name)
    ]
    return parts


def cpu_seconds(command: Command) -> float:
    """Return the CPU time of all threads of a command's process; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{command.process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def newest_step(run: Path) -> int:
    return max((int(path.name[5:17]) for path in run.glob("checkpoints/*.pt")), default=0)


def memory(folder: Path, steps: int) -> int:
    """Measure a run's memory, open files and threads at twenty points."""
    command = Command(
        folder,
        *("run_name=run", f"algo.total_steps={steps}", "replay_ratio=0.02", "env.num_envs=8"),
        *(f"checkpoint.every={max(1, steps // 40)}", f"eval.every={max(1, steps // 20)}"),
        *("eval.episodes=2", "replay.capacity=20000"),
    )
    run, last_step, samples = folder / "outputs" / "run", 0, []
    print("| policy steps | resident, MB | open files | threads |\n|---|---|---|---|", flush=True)
    while command.process.is_alive():
        time.sleep(0.2)
        if (step := newest_step(run)) >= last_step + steps / 20 and step < steps:
            last_step = step
            files, threads = handles(command.process.pid)
            samples.append((resident(command.process.pid), files, threads))
            print(f"| {step} | {samples[-1][0]:.0f} | {files} | {threads} |", flush=True)
    code, output = command.wait()
    if code != 0:
        print(output)
        return 1
    growth = samples[-1][0] - samples[1][0]
    files = folder_contents(run / "replay")
    print(
        f"{len(metric_records(run))} records of metrics;"
        f" {sum(map(len, files.values())) / 1e6:.1f} MB of replay"
    )
    print(f"grew by {growth:.0f} MB after the first tenth")
    return 0 if growth < 20 else 1


def resident(pid: int | None) -> float:
    """Return the resident memory in MB, without the kernel's file cache."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def handles(pid: int | None) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def replay(folder: Path, capacity: int) -> int:
    """Append and sample as a run does; the memory must not grow."""
    spec, envs = EnvSpec({"state": (4,)}, 2, True), 4
    buffer = SequenceReplay(folder / "replay", spec, envs, capacity, 64, 0)
    rng = np.random.default_rng(0)
    false, action = np.zeros(envs, np.bool_), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    print("| steps | resident, MB | on disk, MB | 16 sequences of 64, ms | open files |")
    print("|---|---|---|---|---|", flush=True)
    samples = []
    for step in range(1, capacity // envs + 1):
        state = rng.standard_normal((envs, 4), np.float32)
        buffer.append(
            TimeStep({"state": state}, state[:, 0], false | (step == 1), false, false), action
        )
        if step % (capacity // envs // 10) == 0:
            buffer.flush()
            for _ in range(3):  # the first samples contain new sequences
                buffer.sample(16)
            start_time = time.perf_counter()
            buffer.sample(16)
            milliseconds = 1e3 * (time.perf_counter() - start_time)
            disk = sum(path.stat().st_size for path in folder.rglob("*.steps")) / 1e6
            samples.append(resident(os.getpid()))
            line = f"{len(buffer)} | {samples[-1]:.0f} | {disk:.0f} | {milliseconds:.1f}"
            print(f"| {line} | {handles(os.getpid())[0]} |", flush=True)
    print(f"grew by {samples[-1] - samples[0]:.1f} MB after the first tenth")
    return 0 if samples[-1] - samples[0] < 20 else 1


def trials(folder: Path, trial_count: int) -> int:
    """Measure a driver's memory, open files and threads while its trials run, two at a time."""
    # Only this campaign needs Optuna, which sweep_kills imports.
    from sweep_kills import newest_processes, start

    driver, last_count, samples = start(folder, trial_count), 0, []
    print("| trials started | resident, MB | open files | threads |\n|---|---|---|---|", flush=True)
    while driver.poll() is None:
        time.sleep(0.2)
        if (
            count := len(newest_processes(folder))
        ) >= last_count + trial_count / 10 and count < trial_count:
            last_count = count
            samples.append((resident(driver.pid), *handles(driver.pid)))
            print(
                f"| {count} | {samples[-1][0]:.0f} | {samples[-1][1]} | {samples[-1][2]} |",
                flush=True,
            )
    growth = [last - first for last, first in zip(samples[-1], samples[0], strict=True)]
    print(f"after the first tenth: {growth[0]:.0f} MB, {growth[1]} files, {growth[2]} threads more")
    good = driver.returncode == 0 and growth[0] < 20 and max(growth[1:]) <= 4
    return 0 if good else 1


def saving(folder: Path, saves: int) -> int:
    """Save after every second update of the default run, as its loop does."""
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf")):
        config = load(hydra.compose("config", overrides=["threads=1", "device=cpu"]), [])
    prepare(config.threads)
    trainer = Trainer(config, folder)
    while not trainer.updates:
        trainer.collect_step()
        list(trainer.train_updates())
    updates, saves_blocked = Timer(), Timer()
    with CheckpointWriter(Checkpoints(folder / "checkpoints", 2), check_finite) as writer:
        for _ in range(saves):
            for _ in range(2):
                with updates:
                    trainer._update()
            writer.wait()
            with saves_blocked:
                writer.save(trainer.state_dict(), trainer.updates, trainer.replay.make_flush())
        writer.wait()
        metrics = writer.take_metrics()
    update, save = updates.mean(), saves_blocked.mean()
    print("| | wall time, ms | CPU time of the training thread, ms |\n|---|---|---|")
    print(f"| one update | {update[0]:.1f} | {update[1]:.1f} |")
    print(f"| training blocked by a save | {save[0]:.1f} | {save[1]:.1f} |")
    size, seconds = metrics["system/checkpoint_bytes"], metrics["time/checkpoint_seconds"]
    print(f"{size / 1e6:.1f} MB, written in the background in {1e3 * seconds:.0f} ms")
    for interval in (25.0, config.checkpoint.every * config.algo.replay_ratio):
        share = 100 * save[1] / (interval * update[1])
        print(f"one save every {interval:.0f} updates adds {share:.3f}% of their time")
    trainer.close()
    return 0


class Timer:
    """Sums the time spent in its contexts."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(2), 0

    def __enter__(self) -> None:
        self._start = np.array([time.perf_counter(), time.thread_time()])

    def __exit__(self, *error: object) -> None:
        self._sum += np.array([time.perf_counter(), time.thread_time()]) - self._start
        self._count += 1

    def mean(self) -> list[float]:
        """Return the mean wall time and the mean CPU time of this thread, in milliseconds."""
        return [float(mean) for mean in 1e3 * self._sum / self._count]


if __name__ == "__main__":
    sys.exit(main())
