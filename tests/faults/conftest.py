"""Make `run_process` importable by name, and train the one finished run that many tests copy."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from command_line import command_in
from run_process import TINY
from tiny_run import start_idle_uploader

from llmdreamer.config import Config
from llmdreamer.tracking import tracker
from llmdreamer.training.loop import train


@pytest.fixture
def untracked(monkeypatch):
    """Keep records in the run's folder: nothing is uploaded."""
    monkeypatch.setattr(tracker, "_start_upload_process", start_idle_uploader)


@pytest.fixture
def command(untracked, monkeypatch, tmp_path, capsys):
    """Run the smallest run in this process and an empty folder; returns (exit code, stdout, stderr)."""
    with command_in(tmp_path, monkeypatch, capsys) as run:
        yield lambda *overrides: run(*TINY, *overrides)


@pytest.fixture(scope="session")
def finished(compose, tmp_path_factory) -> tuple[Config, Path]:
    """Train 64 policy steps; checkpoints 48 and 64 remain. Do not change the folder: copy it."""
    config = compose(*TINY)
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "_start_upload_process", start_idle_uploader)
        train(config, folder)
    return config, folder


@pytest.fixture
def copy(finished, tmp_path) -> tuple[Config, Path]:
    """Copy the finished run to where `run_name=run` finds it, for tests that damage it."""
    config, folder = finished
    return config, Path(shutil.copytree(folder, tmp_path / "outputs" / "run"))
