"""How OpenMP's threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdreamer.utils.openmp import SPINS, VARIABLES, wait_briefly

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import os, sys
from llmdreamer.cli.main import entry
entry(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))
"""


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_threads_wait_briefly_by_default(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that the change below is undone
    monkeypatch.delenv("GOMP_SPINCOUNT")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_decision_of_the_user_is_kept(monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    wait_briefly()
    assert {n: os.environ[n] for n in VARIABLES if n in os.environ} == {name: "ACTIVE"}


def test_a_training_command_decides_before_torch_is_loaded():
    command = [sys.executable, "-c", SHOW]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(SPINS), "False"]
