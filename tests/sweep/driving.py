"""Drivers of stand-in trials, as processes of their own, and what the trials leave."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
STANDIN = Path(__file__).with_name("standin.py")


@dataclass
class Sweeping:
    """`sweeping("seed=0,1")` is `python run.py -m seed=0,1` typed in `folder`."""

    folder: Path
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *overrides: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides]
        program = f"hydra.sweeper.command=['{sys.executable}','{STANDIN}']"
        # MLflow takes seconds to make a store: tests/cli looks at what is recorded.
        driver = subprocess.Popen(
            [*command, program, "~hydra.callbacks.llmdreamer"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.drivers.append(driver)
        return driver

    def __call__(self, *overrides: str, **variables: str) -> tuple[int, str]:
        driver = self.start(*overrides, **variables)
        out, _ = driver.communicate(timeout=300)
        return driver.returncode, out

    @property
    def cells(self) -> list[Path]:
        return sorted((self.folder / "outputs" / "cells").glob("*_seed*"))

    def rows(self) -> list[dict[str, str]]:
        (table,) = self.folder.glob("outputs/sweeps/*/results.csv")
        with open(table) as file:
            return list(csv.DictReader(file))


def starts(folder: Path) -> list[list[str]]:
    """For each process of the run in `folder`: the step it began at, its id, threads, devices."""
    path = folder / "starts.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/step-*.pt"))


def until(truth: Callable[[], object], seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def gone(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False
