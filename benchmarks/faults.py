"""Campaigns against one run, longer than a test may be; the figures they gave are in docs/log.md.

    python benchmarks/faults.py kills [--kills 100] [--steps 2400] [--backbone gru] [--env cartpole]
        [--seed 0]
    python benchmarks/faults.py memory [--steps 200000]
    python benchmarks/faults.py replay [--rows 5000000]
    python benchmarks/faults.py trials [--trials 200]
    python benchmarks/faults.py saving [--saves 5]

`kills`: SIGKILL and the same command, again and again, beside the uninterrupted run; no life is longer than
twice what starting takes. `memory`: of a long run, with its open files and threads. `replay`: the same of
experience on the disk. `trials`: the same of the driver of a study, whose trials are stand-ins. `saving`:
for how long a checkpoint holds the default run up, by the clock and by the training thread's processor time.

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
from smallest import contents, differing, rows, saved
from tiny import Command

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import load, register
from llmdreamer.replay import SequenceReplay
from llmdreamer.training.trainer import Trainer, check_finite
from llmdreamer.types import EnvSpec, TimeStep
from llmdreamer.utils.device import prepare

LONG = 7200.0  # seconds that anything may take on a crowded machine


def main() -> int:
    given = parse(
        __doc__,
        {
            "kills": {"kills": 100, "steps": 2400, "backbone": "gru", "env": "cartpole", "seed": 0},
            "memory": {"steps": 200_000},
            "replay": {"rows": 5_000_000},
            "trials": {"trials": 200},
            "saving": {"saves": 5},
        },
    )
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        if given.campaign == "kills":
            chosen = [f"backbone={given.backbone}", f"env={given.env}"]
            typed = (*chosen, f"algo.total_steps={given.steps}")
            return kills(folder, given.kills, typed, random.Random(given.seed))
        if given.campaign == "trials":
            return trials(folder, given.trials)
        if given.campaign == "saving":
            return saving(folder, given.saves)
        return (
            memory(folder, given.steps)
            if given.campaign == "memory"
            else replay(folder, given.rows)
        )
    finally:
        shutil.rmtree(folder)


def kills(folder: Path, wanted: int, given: tuple[str, ...], pick: random.Random) -> int:
    """One run, killed at random points of its life: while it starts, learns, saves, cuts back.

    A point is a number of seconds of the process's own time, so that the machine's load moves none.
    """
    typed = (
        *(*given, "run_name=run", "resume=auto"),
        *("checkpoint.every=10", "env.num_envs=2", "algo.optimizer.anneal=0.5", "eval.every=100"),
        *("eval.episodes=1", "replay_ratio=0.25"),
    )
    whole, killed = folder / "whole", folder / "killed"
    for each in (whole, killed):
        each.mkdir()
    began = time.monotonic()
    uninterrupted = Command(whole, *typed)
    uninterrupted.until(lambda: newest_step(whole / "outputs" / "run") > 0, LONG)
    life = 2 * processor_seconds(uninterrupted)
    assert uninterrupted.wait(LONG)[0] == 0
    print(f"uninterrupted: {time.monotonic() - began:.0f} s", end="; ")
    print(f"to the first checkpoint: {life / 2:.1f} s of processor time", flush=True)
    run, hits, lives, code = killed / "outputs" / "run", [], 0, None
    began = time.monotonic()
    while code != 0:
        lives += 1
        command = Command(killed, *typed)
        if len(hits) < wanted:
            point, before = pick.uniform(0.0, life), processor_seconds(command)
            command.until(lambda: processor_seconds(command) - before >= point, LONG)  # noqa: B023
            command.send(signal.SIGKILL)
        code = command.wait(LONG)[0]
        assert code in (0, -signal.SIGKILL), command.log.read_text()
        if code == -signal.SIGKILL:
            drafts = [*run.glob("checkpoints/*.tmp"), *run.glob("best/*.tmp")]
            hits.append((newest_step(run), bool(drafts)))
            print(f"kill {len(hits)}: newest checkpoint {hits[-1][0]}", flush=True)
    steps, drafts = {step for step, _ in hits}, sum(draft for _, draft in hits)
    print(f"{len(hits)} kills in {lives} lives, {time.monotonic() - began:.0f} s;", end=" ")
    print(f"the newest checkpoint was then of {len(steps)} steps, {min(steps)} to {max(steps)};")
    print(f"{drafts} came while a checkpoint was written")
    print(f"{len(rows(run))} rows of metrics; what differs from the uninterrupted run:", end=" ")
    different = unlike(run, whole / "outputs" / "run")
    print(", ".join(different) or "nothing")
    return 1 if different or len(hits) < wanted else 0


def unlike(one: Path, other: Path) -> list[str]:
    """What of two runs is not the same to the byte."""
    found = [f"state {name}" for name in differing(saved(one), saved(other))]
    if repr(rows(one)) != repr(rows(other)):  # where NaN is NaN
        found.append("metrics")
    found += [name for name in ("replay", "best") if contents(one / name) != contents(other / name)]
    return found


def processor_seconds(command: Command) -> float:
    """Of all threads of a command's process so far; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{command.process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def newest_step(run: Path) -> int:
    return max((int(path.name[5:17]) for path in run.glob("checkpoints/*.pt")), default=0)


def memory(folder: Path, steps: int) -> int:
    """A run's memory, open files and threads at twenty points of it."""
    command = Command(
        folder,
        *("run_name=run", f"algo.total_steps={steps}", "replay_ratio=0.02", "env.num_envs=8"),
        *(f"checkpoint.every={max(1, steps // 40)}", f"eval.every={max(1, steps // 20)}"),
        *("eval.episodes=2", "replay.capacity=20000"),
    )
    run, done, seen = folder / "outputs" / "run", 0, []
    print("| policy steps | resident, MB | open files | threads |\n|---|---|---|---|", flush=True)
    while command.process.is_alive():
        time.sleep(0.2)
        if (now := newest_step(run)) >= done + steps / 20 and now < steps:
            done = now
            files, threads = handles(command.process.pid)
            seen.append((resident(command.process.pid), files, threads))
            print(f"| {now} | {seen[-1][0]:.0f} | {files} | {threads} |", flush=True)
    code, said = command.wait()
    if code != 0:
        print(said)
        return 1
    growth = seen[-1][0] - seen[1][0]
    kept = contents(run / "replay")
    print(
        f"{len(rows(run))} rows of metrics; {sum(map(len, kept.values())) / 1e6:.1f} MB of replay"
    )
    print(f"grown by {growth:.0f} MB after the first tenth")
    return 0 if growth < 20 else 1


def resident(pid: int | None) -> float:
    """Megabytes, files that the kernel keeps in its own cache not counted."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def handles(pid: int | None) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def replay(folder: Path, wanted: int) -> int:
    """Append and sample as a run does; nothing of it may stay in memory."""
    spec, envs = EnvSpec({"state": (4,)}, 2, True), 4
    buffer = SequenceReplay(folder / "replay", spec, envs, wanted, 64, 0)
    rng = np.random.default_rng(0)
    no, action = np.zeros(envs, np.bool_), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    print("| rows | resident, MB | on the disk, MB | 16 sequences of 64, ms | open files |")
    print("|---|---|---|---|---|", flush=True)
    seen = []
    for step in range(1, wanted // envs + 1):
        state = rng.standard_normal((envs, 4), np.float32)
        buffer.append(TimeStep({"state": state}, state[:, 0], no | (step == 1), no, no), action)
        if step % (wanted // envs // 10) == 0:
            buffer.flush()
            for _ in range(3):  # what is newly complete is served first
                buffer.sample(16)
            began = time.perf_counter()
            buffer.sample(16)
            took = 1e3 * (time.perf_counter() - began)
            disk = sum(path.stat().st_size for path in folder.rglob("*.steps")) / 1e6
            seen.append(resident(os.getpid()))
            line = f"{len(buffer)} | {seen[-1]:.0f} | {disk:.0f} | {took:.1f}"
            print(f"| {line} | {handles(os.getpid())[0]} |", flush=True)
    print(f"grown by {seen[-1] - seen[0]:.1f} MB after the first tenth")
    return 0 if seen[-1] - seen[0] < 20 else 1


def trials(folder: Path, wanted: int) -> int:
    """A driver's memory, open files and threads while its trials come and go, two at a time."""
    from sweep_kills import newest_processes, start  # Optuna, for this campaign alone

    driver, done, seen = start(folder, wanted), 0, []
    print("| trials begun | resident, MB | open files | threads |\n|---|---|---|---|", flush=True)
    while driver.poll() is None:
        time.sleep(0.2)
        if (now := len(newest_processes(folder))) >= done + wanted / 10 and now < wanted:
            done = now
            seen.append((resident(driver.pid), *handles(driver.pid)))
            print(f"| {now} | {seen[-1][0]:.0f} | {seen[-1][1]} | {seen[-1][2]} |", flush=True)
    grown = [last - first for last, first in zip(seen[-1], seen[0], strict=True)]
    print(f"after the first tenth: {grown[0]:.0f} MB, {grown[1]} files, {grown[2]} threads more")
    good = driver.returncode == 0 and grown[0] < 20 and max(grown[1:]) <= 4
    return 0 if good else 1


def saving(folder: Path, saves: int) -> int:
    """Save after every two updates of the default run, as its loop does."""
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf")):
        config = load(hydra.compose("config", overrides=["threads=1", "device=cpu"]), [])
    prepare(config.threads)
    trainer = Trainer(config, folder)
    while not trainer.updates:
        trainer.collect_step()
        list(trainer.train_updates())
    updates, held = Spent(), Spent()
    with CheckpointWriter(Checkpoints(folder / "checkpoints", 2), check_finite) as saver:
        for _ in range(saves):
            for _ in range(2):
                with updates:
                    trainer._update()
            saver.wait()
            with held:
                saver.save(trainer.state_dict(), trainer.updates, trainer.replay.make_flush())
        saver.wait()
        figures = saver.take_metrics()
    update, save = updates.mean(), held.mean()
    print("| | clock, ms | processor time of the training thread, ms |\n|---|---|---|")
    print(f"| an update | {update[0]:.1f} | {update[1]:.1f} |")
    print(f"| training held up by a save | {save[0]:.1f} | {save[1]:.1f} |")
    size, took = figures["system/checkpoint_bytes"], figures["time/checkpoint_seconds"]
    print(f"{size / 1e6:.1f} MB, written beside training in {1e3 * took:.0f} ms")
    for apart in (25.0, config.checkpoint.every * config.algo.replay_ratio):
        share = 100 * save[1] / (apart * update[1])
        print(f"one after every {apart:.0f} updates takes {share:.3f}% of them")
    trainer.close()
    return 0


class Spent:
    """Sums the time of its contexts."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(2), 0

    def __enter__(self) -> None:
        self._since = np.array([time.perf_counter(), time.thread_time()])

    def __exit__(self, *error: object) -> None:
        self._sum += np.array([time.perf_counter(), time.thread_time()]) - self._since
        self._count += 1

    def mean(self) -> list[float]:
        """Milliseconds by the clock, and of this thread's processor time."""
        return [float(part) for part in 1e3 * self._sum / self._count]


if __name__ == "__main__":
    sys.exit(main())
