"""The Python interface: compose a configuration, train it, and act with the policy.

    config = compose("env=cartpole", "algo.total_steps=1000")
    run = train(config)
    policy = load_policy(run.folder)

The same configuration, files and records as on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.cli.common import POLICY_FOLDERS
from llmdreamer.cli.rundir import already_finished, remove_if_refused, run_dir
from llmdreamer.config import Config
from llmdreamer.config.compose import compose
from llmdreamer.sweep.run_lock import hold_run_lock
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.export.policy import Policy

__all__ = ["Config", "ConfigError", "TrainedRun", "compose", "load_policy", "train"]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, and its last evaluation."""

    folder: Path
    mean_return: float
    deviation: float  # standard deviation over the episodes of the evaluation


def train(config: Config) -> TrainedRun:
    """Train a run to its end in a folder of its own below `output_root`.

    With `resume`, the run continues in its folder.

    Raises:
        ConfigError: if the folder holds another run, or something requested is missing.
        llmdreamer.utils.errors.Stopped: on SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, after writing a checkpoint.
    """
    folder = run_dir(config, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    folder.mkdir(parents=True, exist_ok=True)
    with hold_run_lock(folder), remove_if_refused(folder):
        if already_finished(config, folder):
            raise ConfigError(
                f"{folder} is finished: raise algo.total_steps above {config.algo.total_steps}"
            )
        from llmdreamer.training import loop

        result = loop.train(config, folder)
    return TrainedRun(folder, result.evaluation.mean, result.evaluation.deviation)


def load_policy(folder: str | Path, *, best: bool = False, trust: Sequence[str] = ()) -> Policy:
    """Load the policy of a run, or of a folder that `llmdreamer export` wrote.

    `policy.act(observation)` returns the action for an observation of the environment; `policy.reset()`
    starts an episode.

    Args:
        best: the best policy of a run instead of the last.
        trust: packages whose code may run, if the run uses code of other packages.

    Raises:
        ConfigError: if the folder holds no policy.
    """
    from llmdreamer.export.policy import SPACES_FILE, Policy, read_trained

    path = Path(folder)
    if (path / SPACES_FILE).exists():
        return Policy.load(path, trust)
    return read_trained(path, trust, POLICY_FOLDERS[best]).policy()
