"""The policy that did best in an evaluation, kept beside the checkpoints.

A policy may get worse again before its run ends. The last evaluation says what training led to; the best
policy is what one would use. The one chosen of many looked better than it is, so it is evaluated anew, on
episodes that it was not chosen by.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmdreamer.agent.restore import load_agent
from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.agent.agent import Agent
    from llmdreamer.evaluation.episodes import Evaluation

log = logging.getLogger(__name__)
FOLDER = "best"  # in the run's folder
_STEP = re.compile(r"step-(\d+)-")


class BestPolicy:
    """The weights of the agent with the highest mean return so far; of equal ones, the latest.

    They are written beside training, before any checkpoint that is asked for later: a run that goes on from
    one finds what was best until then.

    Args:
        saver: of the run's checkpoints.
        goes_on: whether what an earlier life of the run has kept still counts.
    """

    def __init__(
        self, run_dir: Path, device: torch.device, saver: CheckpointWriter, *, goes_on: bool
    ) -> None:
        self._device = device
        self._kept = Checkpoints(run_dir / FOLDER, keep=1)
        self._kept.clear_drafts()
        self._saver = saver.with_folder(self._kept)
        self._offered = -float("inf")
        self._mean = -float("inf")
        path = self._kept.newest_path
        if path is not None and goes_on:
            try:
                self._mean = float(self._kept.newest(device)["mean"])
            except ConfigError as error:
                log.warning("%s: the best policy is chosen anew", error)
                path.unlink()
        elif path is not None:
            path.unlink()

    @property
    def policy_step(self) -> int | None:
        """When it was; None if nothing was kept yet. Waits for what is being written."""
        self._settle()
        path = self._kept.newest_path
        match = None if path is None else _STEP.match(path.name)
        return None if match is None else int(match[1])

    @property
    def mean(self) -> float:
        """The best mean return so far; minus infinity before the first. Waits as `policy_step` does."""
        self._settle()
        return self._mean

    def offer(self, agent: Agent, evaluation: Evaluation, policy_step: int) -> None:
        """Keep the agent if none was better."""
        self._settle()
        if evaluation.mean >= self._mean:
            state = {"trainer": {"agent": agent.state_dict()}, "mean": evaluation.mean}
            self._offered = evaluation.mean
            self._saver.save(state, policy_step)

    def restore(self, agent: Agent) -> None:
        """Give `agent` the weights that were kept.

        Raises:
            ConfigError: if none were, or the file is damaged.
        """
        self._settle()
        load_agent(agent, self._kept.newest(self._device)["trainer"]["agent"])

    def _settle(self) -> None:
        """Wait for what is being written. What could not be, as on a full disk, is not the best."""
        self._saver.wait()
        if self._saver.take_metrics():
            self._mean = self._offered
