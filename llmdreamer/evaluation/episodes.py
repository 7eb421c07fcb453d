"""Evaluates a policy over whole episodes, one environment per episode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmdreamer.agent.agent import Agent
from llmdreamer.agent.collector import to_tensors
from llmdreamer.envs import VectorEnv, make_vector
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.noise import Noise
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


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
        """Sample standard deviation over the episodes; 0 for a single one."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    def __str__(self) -> str:
        """Format as `487.6 ± 15.5`, with one more decimal if returns are below ten."""
        digits = 1 if max(abs(self.mean), self.deviation) >= 10 else 2
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"

    def metrics(self) -> dict[str, float]:
        return {
            "eval/return": self.mean,
            "eval/return_sd": self.deviation,
            "eval/length": float(self.lengths.mean()),
        }


def evaluate(agent: Agent, env: EnvConfig, episodes: int, seed: int, *, greedy: bool) -> Evaluation:
    """Run `episodes` episodes side by side.

    Args:
        seed: decides the initial states and the random draws.
        greedy: take the mode of latent and action; otherwise sample both, as in training. With modes, a
            policy that is undecided between two directions may go in circles.
    """
    envs = make_vector(env, episodes, seed + SeedOffset.EVALUATION)
    try:
        envs.check_spec(agent.spec)
        return _run_episodes(agent, envs, seed, greedy)
    finally:
        envs.close()


def check_video(env: EnvConfig, seed: int) -> None:
    """Check that the environment can be made with rendering, and declares that it renders images.

    Raises:
        ConfigError: if not.
    """
    # Asked of an environment without rendering: Gymnasium itself only warns of a mode that is not declared.
    envs = make_vector(env, 1, seed)
    envs.close()
    if not envs.renders_images:
        raise ConfigError(
            f"env.id={env.id} renders no images (its render_modes lack rgb_array): set eval.video=false, or"
            " leave out --video"
        )
    make_vector(env, 1, seed, render=True).close()


def record_video(agent: Agent, env: EnvConfig, seed: int, path: Path, *, greedy: bool) -> Path:
    """Run one episode, as `evaluate` does, and write it as a GIF.

    Raises:
        EnvError: if the environment fails, or renders something else than images.
    """
    from PIL import Image

    envs = make_vector(env, 1, seed + SeedOffset.EVALUATION, render=True)
    frames: list[NDArray[np.uint8]] = []
    try:
        envs.check_spec(agent.spec)
        _run_episodes(agent, envs, seed, greedy, frames)
    finally:
        envs.close()
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, loop=0)
    return path


def _run_episodes(
    agent: Agent,
    envs: VectorEnv,
    seed: int,
    greedy: bool,
    frames: list[NDArray[np.uint8]] | None = None,
) -> Evaluation:
    training = agent.training
    agent.eval()
    # Evaluation draws from its own random stream, so that it does not change training.
    noise = Noise(seed + SeedOffset.EVALUATION, agent.device)
    try:
        with agent.world_model.backbone.merged():
            return _step_until_done(agent, envs, noise, greedy, frames)
    finally:
        agent.train(training)


def _step_until_done(
    agent: Agent,
    envs: VectorEnv,
    noise: Noise,
    greedy: bool,
    frames: list[NDArray[np.uint8]] | None,
) -> Evaluation:
    step = envs.reset()
    with noise.installed():
        state = agent.initial_state(envs.num_envs)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    running = np.ones(envs.num_envs, np.bool_)
    while running.any():
        if frames is not None:
            frames.append(envs.render())
        observations, is_first = to_tensors(step, agent.device)
        with noise.installed():
            action, state = agent.act(observations, is_first, state, explore=not greedy)
        step = envs.step(action.cpu().numpy())
        returns += running * step.reward
        lengths += running
        # An environment that failed was restarted: its episode starts again.
        restarted = running & step.is_first
        returns[restarted], lengths[restarted] = 0.0, 0
        done = step.terminated | step.truncated
        running &= ~done
        # Environments that are done continue with an episode that is not counted.
        if done.any() and running.any():
            step = envs.reset(done)
    return Evaluation(returns, lengths)
