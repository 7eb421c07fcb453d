"""Measure everything a user waits for except learning. Run by hand.

    python benchmarks/overhead.py [--steps 1500] [--repeat 3] [--json FILE] [override ...]

It measures four things, each with a limit: the share of a default run's time that tracking, checkpoints
and the display take; the time of `run.py --help`; the time from the command to the first step in replay;
and the time of one action. `step.py` measures learning. The run is short (--steps) and its files are
deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from workload import CARTPOLE, ROOT, compose

from llmdreamer.agent.agent import Agent
from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.training import loop
from llmdreamer.training.clock import Clock
from llmdreamer.training.display import Display
from llmdreamer.training.journal import Journal
from llmdreamer.training.system import SystemMonitor
from llmdreamer.utils.device import prepare

LIMITS = {"records": 0.03, "help": 2.5, "first step": 12.0, "acting": 0.003}
TIMED_CALLS: list[tuple[Any, str, str]] = [
    (loop.Run, "run", "everything else"),
    (Journal, "log_updates", "tracking"),
    (Journal, "log", "tracking"),
    (SystemMonitor, "read", "tracking"),
    (loop.Run, "_save", "checkpoints"),
    (CheckpointWriter, "raise_pending", "checkpoints"),
    (Display, "update", "display"),
    (Display, "say", "display"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="policy steps of the run")
    parser.add_argument("--repeat", type=int, default=3, help="starts of each command")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    results: dict[str, Any] = {
        "help": [help_seconds() for _ in range(args.repeat)],
        "first step": [first_step_seconds(overrides) for _ in range(args.repeat)],
        "acting": action_seconds(overrides),
        "records": record_shares(args.steps, overrides),
    }
    table = Table("measure", "median [min, max]", "limit", title=" ".join(overrides) or "defaults")
    table.add_row("run.py --help, s", spread(results["help"]), f"{LIMITS['help']}")
    table.add_row(
        "command to first step, s", spread(results["first step"]), f"{LIMITS['first step']}"
    )
    milliseconds = [1e3 * seconds for seconds in results["acting"]]
    table.add_row("one action, ms", spread(milliseconds), f"{1e3 * LIMITS['acting']:.0f}")
    for name, share in results["records"].items():
        table.add_row(f"{name}, share of the run", f"{share:.2%}", "")
    total = sum(results["records"][name] for name in ("tracking", "checkpoints", "display"))
    table.add_row("tracking, checkpoints, display", f"{total:.2%}", f"{LIMITS['records']:.0%}")
    Console(width=100).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def help_seconds() -> float:
    """Return the seconds of `run.py --help`."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def first_step_seconds(overrides: Sequence[str]) -> float:
    """Return the seconds from the command until the first step is in the run's replay."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", *overrides, *private_paths(folder)]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            # The first step creates the file.
            while not any(Path(folder).glob("run/replay/stream-*/*")):
                if run.poll() is not None:
                    raise SystemExit(f"the run ended before its first step: {run.communicate()[1]}")
                time.sleep(0.01)
            seconds = time.perf_counter() - begin
            run.terminate()
            run.communicate()
        return seconds


def action_seconds(overrides: Sequence[str], count: int = 300) -> list[float]:
    """Return the seconds of single actions in one environment, without the first tenth as warm-up."""
    config = compose(overrides)
    prepare(config.threads)
    torch.manual_seed(0)
    agent = Agent(config, CARTPOLE)
    state, first = agent.initial_state(1), torch.zeros(1, dtype=torch.bool)
    seconds = []
    for _ in range(count):
        observations = {"state": torch.randn(1, 4)}
        begin = time.perf_counter()
        action, state = agent.act(observations, first, state, explore=True)
        action.numpy()
        seconds.append(time.perf_counter() - begin)
    return seconds[count // 10 :]


def record_shares(steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Return shares of a run's wall time, and the CPU time of other threads and of child processes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run_overrides = [*overrides, f"algo.total_steps={steps}"]
        config = compose([*run_overrides, *private_paths(folder)[1:]])
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        with timed_calls(clock):
            clock.read()
            begin, thread = time.process_time(), time.thread_time()
            before = os.times()
            loop.train(config, run_dir, run_overrides)
            elapsed, shares = clock.read()
            threads = (time.process_time() - begin) - (time.thread_time() - thread)
            after = os.times()
    children = after.children_user + after.children_system
    children -= before.children_user + before.children_system
    others = {"other threads, CPU": threads / elapsed, "child processes, CPU": children / elapsed}
    return dict.fromkeys(("tracking", "checkpoints", "display"), 0.0) | shares | others


@contextmanager
def timed_calls(clock: Clock):
    """Time the calls in `TIMED_CALLS` as stages of the clock."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in TIMED_CALLS]
    for owner, name, stage in TIMED_CALLS:
        setattr(owner, name, timed(clock, stage, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, call in originals:
            setattr(owner, name, call)


def timed(clock: Clock, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def timed_call(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(stage):
            return call(*args, **kwargs)

    return timed_call


def private_paths(folder: str) -> list[str]:
    """Return overrides under which a run writes only into this folder."""
    return [f"hydra.run.dir={folder}/run", f"tracking.uri=sqlite:///{folder}/mlflow.db"]


if __name__ == "__main__":
    main()
