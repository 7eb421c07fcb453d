"""Fixtures that run the command line in this process, `command("model=Q")`, without training."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from command_line import command_in

from llmdreamer.config import Config, to_yaml
from llmdreamer.sweep.hydra_callback import ParentRunCallback


@dataclass
class Result:
    objective: float


@dataclass
class Training:
    """Replacement of llmdreamer.training.loop, which needs torch: records the requested runs."""

    runs: list[tuple[Config, Path]] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)  # by seed

    def train(self, cfg: Config, run_dir: Path, overrides: Sequence[str]) -> Result:
        self.runs.append((cfg, run_dir))
        (run_dir / "config.yaml").write_text(to_yaml(cfg))
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        logging.getLogger("llmdreamer.training").info("trained seed %d", cfg.seed)
        if cfg.seed in self.errors:
            raise self.errors[cfg.seed]
        return Result(1.0)


@pytest.fixture
def training(monkeypatch):
    stand_in, module = Training(), ModuleType("llmdreamer.training.loop")
    module.train = stand_in.train
    monkeypatch.setitem(sys.modules, "llmdreamer.training.loop", module)
    return stand_in


@pytest.fixture
def command(training, monkeypatch, tmp_path, capsys):
    """Return a function that runs the command in an empty folder: (exit code, stdout, stderr)."""
    # MLflow takes seconds to create a store; tests/sweep checks its contents.
    monkeypatch.setattr(ParentRunCallback, "on_multirun_start", lambda *_, **__: None)
    with command_in(tmp_path, monkeypatch, capsys) as typed:
        yield typed
