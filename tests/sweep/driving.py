"""Drivers of stand-in trials, as processes of their own, and what the trials leave."""

import csv
import json
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


# Children of one process, so that only one imports Optuna. They wait for the pipe's other end to close.
OPENERS = """
import os, pathlib, sys, traceback
import optuna
from llmdreamer.sweep.studies.storage import Store
count, url, folder = int(sys.argv[1]), sys.argv[2] or None, pathlib.Path(sys.argv[3])
go, gun = os.pipe()
children = []
for _ in range(count):
    if (child := os.fork()) == 0:
        try:
            os.close(gun)
            os.read(go, 1)
            store = Store(url, folder, 15)
            with store.alone("s"):
                optuna.create_study(study_name="s", storage=store.optuna, load_if_exists=True)
            assert len(store.optuna.get_all_studies()) == 1
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    children.append(child)
os.close(gun)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def opened_at_once(count: int, url: str | None, folder: Path) -> list[int]:
    """The exit codes of so many processes that open a study's database at one moment."""
    command = [sys.executable, "-c", OPENERS, str(count), url or "", str(folder)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.check_output(command, env=variables, text=True, timeout=300)
    codes: list[int] = json.loads(out)
    return codes
