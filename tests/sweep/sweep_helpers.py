"""Starts drivers of fake runs as separate processes, and reads what the runs leave."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from forked import ForkedProcess, ForkServer

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
FAKE_RUN = Path(__file__).with_name("fake_run.py")


@cache
def fork_server() -> ForkServer:
    """Return the process from which this test process forks its drivers."""
    return ForkServer(
        "run", "warm_driver", "llmdreamer.sweep.driver", "llmdreamer.sweep.studies.study"
    )


@dataclass
class Sweeper:
    """Runs sweeps in a folder: `sweeper("seed=0,1")` is `python run.py -m seed=0,1` typed there."""

    folder: Path
    drivers: list[ForkedProcess] = field(default_factory=list)

    def start(self, *overrides: str, **variables: str) -> ForkedProcess:
        """Start a driver, with `variables` added to its environment."""
        program = f"hydra.sweeper.command=['{sys.executable}','{FAKE_RUN}']"
        # Without a parent run: creating an MLflow store takes seconds. tests/cli checks the records.
        words = ["-m", *overrides, program, "~hydra.callbacks.parent_run"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        argv = [str(ROOT / "run.py"), *words]
        driver = fork_server().start("run:main", argv, self.folder, environment)
        self.drivers.append(driver)
        return driver

    def __call__(self, *overrides: str, **variables: str) -> tuple[int, str]:
        """Run a sweep to its end and return its exit code and output."""
        driver = self.start(*overrides, **variables)
        output, _ = driver.communicate(timeout=300)
        return driver.returncode, output

    @property
    def cells(self) -> list[Path]:
        return sorted((self.folder / "outputs" / "cells").glob("*_seed*"))

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the only results.csv."""
        (table,) = self.folder.glob("outputs/sweeps/*/results.csv")
        with open(table) as file:
            return list(csv.DictReader(file))


def read_starts(folder: Path) -> list[list[str]]:
    """Return a list for each process of the run in `folder`: first step, process ID, threads, devices."""
    path = folder / "starts.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/step-*.pt"))


def wait_until(condition: Callable[[], object], timeout_seconds: float = 150.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.02)


def is_gone(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


# The children are forked from one process, so that Optuna is imported once. They all block on a pipe
# and start together when the parent closes its end.
OPEN_STUDIES = """
import os, pathlib, sys, traceback
import optuna
from llmdreamer.sweep.studies.storage import StudyStorage
count, url, folder = int(sys.argv[1]), sys.argv[2] or None, pathlib.Path(sys.argv[3])
read_end, write_end = os.pipe()
children = []
for _ in range(count):
    if (child := os.fork()) == 0:
        try:
            os.close(write_end)
            os.read(read_end, 1)
            storage = StudyStorage(url, folder, 15)
            storage.section("s", lambda: optuna.create_study(
                study_name="s", storage=storage.optuna, load_if_exists=True
            ))
            assert len(storage.optuna.get_all_studies()) == 1
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    children.append(child)
os.close(write_end)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def open_concurrently(count: int, url: str | None, folder: Path) -> list[int]:
    """Let `count` processes open a study's database at once and return their exit codes."""
    command = [sys.executable, "-c", OPEN_STUDIES, str(count), url or "", str(folder)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.check_output(command, env=variables, text=True, timeout=300)
    exit_codes: list[int] = json.loads(output)
    return exit_codes
