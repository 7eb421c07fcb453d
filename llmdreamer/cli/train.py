"""`llmdreamer train` and `llmdreamer sweep`, also `python run.py`: train one run or a sweep of runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llmdreamer import config
from llmdreamer.cli.main import TRUSTED, entry, job
from llmdreamer.cli.rundir import already_finished, register_resolvers, remove_if_refused
from llmdreamer.cli.settings import load_settings
from llmdreamer.config.sources import conf_folder
from llmdreamer.sweep.run_lock import hold_run_lock
from llmdreamer.utils.output import print_line


@hydra.main(config_path=str(conf_folder()), config_name="config", execution_whitelist=TRUSTED)
@job
def run(cfg: DictConfig) -> float | None:
    """Train the run that Hydra has composed; return its objective, or None if nothing was left to do."""
    hydra_cfg = HydraConfig.get()
    folder = Path(hydra_cfg.runtime.output_dir)
    with hold_run_lock(folder), remove_if_refused(folder):
        # Read under the lock: a process that held it before may have written a checkpoint to resume from.
        settings = load_settings(cfg, hydra_cfg)
        if already_finished(settings, folder):
            steps = settings.algo.total_steps
            print_line(
                f"{folder} is finished: {steps} policy steps are done; algo.total_steps=... adds more"
            )
            return None
        # Imported late: --help, --cfg and refused commands do not need torch.
        from llmdreamer.training.loop import train

        return train(settings, folder, hydra_cfg.overrides.task).objective


def main(argv: list[str] | None = None) -> int:
    """Train with the words of `argv`, or of the command line, and return the exit code."""
    if argv is not None:
        sys.argv[1:] = argv  # Hydra reads the words there
    sys.argv[1:] = _with_absolute_config_path(sys.argv[1:])
    config.register()
    register_resolvers()
    return entry(run)


def _with_absolute_config_path(words: list[str]) -> list[str]:
    """Make a typed `--config-path` absolute; Hydra would look for it in this module's package."""
    words = [*words]
    for i, word in enumerate(words):
        flag, equals, path = word.partition("=")
        if flag not in ("--config-path", "-cp"):
            continue
        if equals:
            words[i] = f"{flag}={os.path.abspath(path)}"
        elif i + 1 < len(words):
            words[i + 1] = os.path.abspath(words[i + 1])
    return words


def sweep(argv: list[str]) -> int:
    """Run a sweep: Hydra's multirun, without typing -m."""
    return main(["-m", *argv])
