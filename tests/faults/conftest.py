"""Lets `tiny` be imported by name, and trains the one finished run that many tests copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import TINY

from llmdreamer.config import Config
from llmdreamer.tracking import tracker
from llmdreamer.training.loop import train


@pytest.fixture
def untracked(monkeypatch):
    """Rows stay in the run's folder: a process that only waits stands in for the one that uploads."""
    monkeypatch.setattr(tracker, "_spawn_shipper", _wait)


def _wait(folder, uri):
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def finished(compose, tmp_path_factory) -> tuple[Config, Path]:
    """64 policy steps with checkpoints at 32 and 64. Copy it, do not change it."""
    config = compose(*TINY, "checkpoint.every=32")
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "_spawn_shipper", _wait)
        train(config, folder)
    return config, folder


@pytest.fixture
def copy(finished, tmp_path) -> tuple[Config, Path]:
    """That run again, to be harmed."""
    config, folder = finished
    return config, Path(shutil.copytree(folder, tmp_path / "run"))
