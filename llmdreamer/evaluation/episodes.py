"""Measures a policy: whole episodes, each in an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmdreamer.agent.agent import Agent
from llmdreamer.agent.collector import to_tensors
from llmdreamer.envs import VectorEnv, make_vector
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

EVALUATION_SEED = 1_000_003
"""Added to the run's seed, so that no evaluation episode begins as a training one did."""

RUN_OFF = 250_007
"""Added to the run's seed for episodes by which the best policy is chosen."""

FRESH = 500_009
"""Added to the run's seed for episodes that no choice was made by."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (policy steps) of complete episodes."""

    returns: NDArray[np.float64]  # (episodes,)
    lengths: NDArray[np.int64]  # (episodes,)

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation over the episodes; 0 for a single one."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    def __str__(self) -> str:
        """`487.6 ± 15.5`; with a decimal more where returns are below ten."""
        digits = 1 if max(abs(self.mean), self.deviation) >= 10 else 2
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"

    def metrics(self) -> dict[str, float]:
        return {
            "eval/return": self.mean,
            "eval/return_sd": self.deviation,
            "eval/length": float(self.lengths.mean()),
        }


def evaluate(agent: Agent, env: EnvConfig, episodes: int, seed: int, *, greedy: bool) -> Evaluation:
    """Live `episodes` episodes side by side.

    Args:
        seed: the same seed shows the same initial states, and draws the same.
        greedy: take the mode of latent and action; else both are sampled, as in training. By its modes
            a policy that hesitates between two ways may go in circles for ever.
    """
    envs = make_vector(env, episodes, seed + EVALUATION_SEED)
    try:
        return _live(agent, envs, seed, greedy)
    finally:
        envs.close()


def record_video(agent: Agent, env: EnvConfig, seed: int, path: Path, *, greedy: bool) -> Path:
    """Live one episode, as `evaluate` does, and write it as a GIF.

    Raises:
        ConfigError: if the environment does not render pictures.
    """
    from PIL import Image

    envs = make_vector(env, 1, seed + EVALUATION_SEED, render=True)
    frames: list[NDArray[Any]] = []
    try:
        _live(agent, envs, seed, greedy, frames)
    finally:
        envs.close()
    if not frames:
        raise ConfigError(f"env.id={env.id} renders no pictures: leave the video out")
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, loop=0)
    return path


def _live(
    agent: Agent,
    envs: VectorEnv,
    seed: int,
    greedy: bool,
    frames: list[NDArray[Any]] | None = None,
) -> Evaluation:
    training = agent.training
    agent.eval()
    device = next(agent.parameters()).device
    # What is drawn here is not taken from training's stream: evaluated or not, a run is the same.
    devices = [device] if device.type == "cuda" else []
    with agent.world_model.backbone.merged(), torch.random.fork_rng(devices):
        torch.manual_seed(seed + EVALUATION_SEED)
        lived = _lived(agent, envs, device, greedy, frames)
    agent.train(training)
    return lived


def _lived(
    agent: Agent,
    envs: VectorEnv,
    device: torch.device,
    greedy: bool,
    frames: list[NDArray[Any]] | None,
) -> Evaluation:
    rows, state = envs.reset(), agent.initial_state(envs.num_envs)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    alive = np.ones(envs.num_envs, np.bool_)
    while alive.any():
        if frames is not None and (frame := envs.render()) is not None:
            frames.append(frame)
        observations, is_first = to_tensors(rows, device)
        action, state = agent.act(observations, is_first, state, explore=not greedy)
        rows = envs.step(action.cpu().numpy())
        returns += alive * rows.reward
        lengths += alive
        # An environment that failed was made anew: its episode is lived from the start again.
        again = alive & rows.is_first
        returns[again], lengths[again] = 0.0, 0
        over = rows.terminated | rows.truncated
        alive &= ~over
        # Those that are over go on with an episode that is not counted.
        if over.any() and alive.any():
            rows = envs.reset(over)
    return Evaluation(returns, lengths)
