"""What a user waits for beside learning: starting up, acting, and being recorded. Run by hand.

    python benchmarks/overhead.py [--steps 1500] [--repeat 3] [--json FILE] [override ...]

Four questions, each with its bar: what share of a default run's time goes to records, checkpoints and the
display; how long `run.py --help` takes; how long it takes from the command to the first row of experience;
and how long the agent thinks about one action. Learning itself is `step.py`'s. The run is shortened
(--steps) and leaves nothing behind.
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

BARS = {"records": 0.03, "help": 2.5, "first step": 12.0, "acting": 0.003}
WATCHED: list[tuple[Any, str, str]] = [
    (loop.Run, "to_the_end", "everything else"),
    (Journal, "log_updates", "tracking"),
    (Journal, "log", "tracking"),
    (SystemMonitor, "read", "tracking"),
    (loop.Run, "_save", "checkpoints"),
    (CheckpointWriter, "look", "checkpoints"),
    (Display, "update", "display"),
    (Display, "say", "display"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="policy steps of the run")
    parser.add_argument("--repeat", type=int, default=3, help="of starting up")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    found: dict[str, Any] = {
        "help": [helped() for _ in range(given.repeat)],
        "first step": [first_step(overrides) for _ in range(given.repeat)],
        "acting": acting(overrides),
        "records": records(given.steps, overrides),
    }
    table = Table("what", "median [least, most]", "bar", title=" ".join(overrides) or "defaults")
    table.add_row("run.py --help, s", spread(found["help"]), f"{BARS['help']}")
    table.add_row("command to first step, s", spread(found["first step"]), f"{BARS['first step']}")
    milliseconds = [1e3 * one for one in found["acting"]]
    table.add_row("an action, ms", spread(milliseconds), f"{1e3 * BARS['acting']:.0f}")
    for name, share in found["records"].items():
        table.add_row(f"{name}, share of a run", f"{share:.2%}", "")
    told = sum(found["records"][name] for name in ("tracking", "checkpoints", "display"))
    table.add_row("tracking, checkpoints, display", f"{told:.2%}", f"{BARS['records']:.0%}")
    Console(width=100).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def helped() -> float:
    """Seconds of `run.py --help`."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def first_step(overrides: Sequence[str]) -> float:
    """Seconds from the command until a row of experience is in the run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", *overrides, *private(folder)]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            # The file is as long as what was stored in it, and is made by the first row.
            while not any(Path(folder).glob("run/replay/stream-*/*")):
                if run.poll() is not None:
                    raise SystemExit(f"the run ended before its first step: {run.communicate()[1]}")
                time.sleep(0.01)
            seconds = time.perf_counter() - begin
            run.terminate()
            run.communicate()
        return seconds


def acting(overrides: Sequence[str], count: int = 300) -> list[float]:
    """Seconds of each of `count` single actions, in one environment, after some to warm up."""
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


def records(steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Shares of a run's wall time, and the processor time that other threads and processes took beside it."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        asked = [*overrides, f"algo.total_steps={steps}"]
        config = compose([*asked, *private(folder)[1:]])
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        with watched(clock):
            clock.read()
            begin, thread = time.process_time(), time.thread_time()
            before = os.times()
            loop.train(config, run_dir, asked)
            elapsed, shares = clock.read()
            threads = (time.process_time() - begin) - (time.thread_time() - thread)
            after = os.times()
    children = after.children_user + after.children_system
    children -= before.children_user + before.children_system
    beside = {"other threads' processor": threads / elapsed, "children's": children / elapsed}
    return dict.fromkeys(("tracking", "checkpoints", "display"), 0.0) | shares | beside


@contextmanager
def watched(clock: Clock):
    """Have the clock tell apart what `WATCHED` says, while it lasts."""
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in WATCHED]
    for owner, name, stage in WATCHED:
        setattr(owner, name, timed(clock, stage, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, call in plain:
            setattr(owner, name, call)


def timed(clock: Clock, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(stage):
            return call(*args, **kwargs)

    return inside


def private(folder: str) -> list[str]:
    """A run that writes nothing elsewhere."""
    return [f"hydra.run.dir={folder}/run", f"tracking.uri=sqlite:///{folder}/mlflow.db"]


if __name__ == "__main__":
    main()
