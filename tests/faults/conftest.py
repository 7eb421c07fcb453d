"""Lets `tiny` be imported by name, and trains the one finished run that many tests copy."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from inprocess import typing_in
from smallest import wait_only
from tiny import TINY

from llmdreamer.config import Config
from llmdreamer.tracking import tracker
from llmdreamer.training.loop import train


@pytest.fixture
def untracked(monkeypatch):
    """Rows stay in the run's folder."""
    monkeypatch.setattr(tracker, "_start_upload_process", wait_only)


@pytest.fixture
def command(untracked, monkeypatch, tmp_path, capsys):
    """The smallest run, typed in an empty folder of this process: (exit code, stdout, stderr)."""
    with typing_in(tmp_path, monkeypatch, capsys) as typed:
        yield lambda *overrides: typed(*TINY, *overrides)


@pytest.fixture(scope="session")
def finished(compose, tmp_path_factory) -> tuple[Config, Path]:
    """64 policy steps, and the checkpoints of the last two of 16, 32, 48, 64. Do not change it."""
    config = compose(*TINY)
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "_start_upload_process", wait_only)
        train(config, folder)
    return config, folder


@pytest.fixture
def copy(finished, tmp_path) -> tuple[Config, Path]:
    """That run again, to be harmed, where `run_name=run` finds it."""
    config, folder = finished
    return config, Path(shutil.copytree(folder, tmp_path / "outputs" / "run"))
