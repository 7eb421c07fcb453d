"""Sweeps of stand-in trials: `sweeping("seed=0,1")` is a driver as a process of its own."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
STANDIN = Path(__file__).with_name("standin.py")


@dataclass
class Sweeping:
    """Starts drivers in one folder; no driver outlives the test."""

    folder: Path
    drivers: list[subprocess.Popen[str]]

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
        out, _ = driver.communicate(timeout=100)
        return driver.returncode, out

    @property
    def cells(self) -> list[Path]:
        return sorted((self.folder / "outputs" / "cells").glob("*_seed*"))

    def rows(self) -> list[dict[str, str]]:
        (table,) = self.folder.glob("outputs/sweeps/*/results.csv")
        with open(table) as file:
            return list(csv.DictReader(file))


@pytest.fixture
def sweeping(tmp_path: Path):
    sweeping = Sweeping(tmp_path, [])
    yield sweeping
    for driver in sweeping.drivers:
        driver.kill()
        driver.communicate()
