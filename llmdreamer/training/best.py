"""Saves the policy with the best evaluation, beside the checkpoints.

A policy may get worse before its run ends. The last evaluation is the result of training; the best policy is
the one to use. Selecting the best of many overestimates it, so it is evaluated again on other episodes.
"""

from __future__ import annotations

import logging
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
BEST_FOLDER = "best"  # in the run's folder


class BestPolicy:
    """The weights of the agent with the highest mean return so far; among equals, the latest.

    They are written before any later checkpoint, so a resumed run finds the policy that was best up to its
    checkpoint.

    Args:
        writer: writes the checkpoints of the run.
        resumed: keep the best policy of earlier attempts; otherwise delete it.
    """

    def __init__(
        self, run_dir: Path, device: torch.device, writer: CheckpointWriter, *, resumed: bool
    ) -> None:
        self._device = device
        self._checkpoints = Checkpoints(run_dir / BEST_FOLDER, keep=1)
        self._checkpoints.clear_drafts()
        self._writer = writer.with_folder(self._checkpoints)
        self._submitted = -float("inf")
        self._mean = -float("inf")
        path = self._checkpoints.newest_path
        if path is not None and resumed:
            try:
                self._mean = float(self._checkpoints.newest(device)["mean"])
            except ConfigError as error:
                log.warning("%s: the best policy so far is discarded", error)
                path.unlink()
        elif path is not None:
            path.unlink()

    @property
    def policy_step(self) -> int | None:
        """The policy step of the best policy; None if there is none. Waits for the writing thread."""
        self._wait()
        step = self._checkpoints.newest_step
        return None if step < 0 else step

    @property
    def mean(self) -> float:
        """The best mean return so far; minus infinity before the first. Waits like `policy_step`."""
        self._wait()
        return self._mean

    def save_if_best(self, agent: Agent, evaluation: Evaluation, policy_step: int) -> None:
        """Save the agent unless an earlier one was better."""
        self._wait()
        if evaluation.mean >= self._mean:
            state = {"trainer": {"agent": agent.state_dict()}, "mean": evaluation.mean}
            self._submitted = evaluation.mean
            self._writer.save(state, policy_step)

    def restore(self, agent: Agent) -> None:
        """Load the saved weights into `agent`.

        Raises:
            ConfigError: if there are none, or the file is damaged.
        """
        self._wait()
        load_agent(agent, self._checkpoints.newest(self._device)["trainer"]["agent"])

    def _wait(self) -> None:
        """Wait for the writing thread. A policy that could not be written is not the best."""
        self._writer.wait()
        if self._writer.take_metrics():
            self._mean = self._submitted
