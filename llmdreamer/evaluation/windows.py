"""Windows of experience for open-loop evaluation: fresh episodes, or the replay of a run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llmdreamer.agent.agent import Agent
from llmdreamer.agent.collector import Collector
from llmdreamer.envs import make_vector
from llmdreamer.evaluation.open_loop import measure
from llmdreamer.evaluation.open_loop_record import OpenLoop
from llmdreamer.replay import SequenceReplay
from llmdreamer.types import SequenceBatch
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.noise import Noise
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig, Config

NUM_ENVS = 8
WINDOWS_PER_ENV = 3  # steps per environment, in window lengths
TRAJECTORIES = 8  # imagined per window


def default_context(algo: AlgoConfig, horizon: int) -> int:
    """Return the number of observed steps that makes a window as long as a training sequence."""
    return max(1, algo.per_rank_sequence_length - horizon)


def evaluate_open_loop(agent: Agent, config: Config, windows: int, seed: int) -> OpenLoop:
    """Measure open-loop errors on fresh experience, over the imagination horizon of training."""
    horizon = config.algo.horizon
    context = default_context(config.algo, horizon)
    noise = Noise(seed + SeedOffset.OPEN_LOOP, agent.device)
    batch = fresh_windows(agent, config, windows, context + horizon, seed, noise)
    return measure_in_eval_mode(agent, batch, context, TRAJECTORIES, noise)


def measure_in_eval_mode(
    agent: Agent, batch: SequenceBatch, context: int, samples: int, noise: Noise
) -> OpenLoop:
    """Call `measure` with the agent in evaluation mode."""
    training = agent.training
    agent.eval()
    with noise.installed():
        result = measure(agent.world_model, batch, context, samples)
    agent.train(training)
    return result


def fresh_windows(
    agent: Agent, config: Config, windows: int, length: int, seed: int, noise: Noise
) -> SequenceBatch:
    """Return random windows of `length` steps from new episodes.

    The policy samples its actions, as in training. The windows come from the first
    WINDOWS_PER_ENV * `length` steps of NUM_ENVS environments, so only from the beginning of long episodes.
    """
    steps = WINDOWS_PER_ENV * length
    training = agent.training
    agent.eval()
    envs = make_vector(config.env, NUM_ENVS, seed + SeedOffset.OPEN_LOOP)
    try:
        envs.check_spec(agent.spec)
        with TemporaryDirectory() as folder:
            # An episode of one step takes two entries.
            capacity = NUM_ENVS * 2 * steps
            replay = SequenceReplay(
                Path(folder) / "replay", envs.spec, NUM_ENVS, capacity, length, seed, online=False
            )
            collector = Collector(envs, agent, replay, seed, noise)
            for _ in range(steps):
                collector.step(explore_at_random=False)
            batch = replay.sample(windows)
            replay.close()
    finally:
        envs.close()
        agent.train(training)
    return batch.to(agent.device)


def replayed_windows(
    agent: Agent, config: Config, run_dir: Path, windows: int, length: int, seed: int
) -> SequenceBatch:
    """Return random windows of `length` steps from the replay that the run was trained on.

    Raises:
        ConfigError: if the run's replay is gone, or too short.
    """
    folder = run_dir / "replay"
    if not folder.is_dir():
        raise ConfigError(f"missing replay: {run_dir} has no replay/; leave out --replay")
    replay = SequenceReplay(
        folder,
        agent.spec,
        config.env.num_envs,
        config.replay.capacity,
        length,
        seed,
        online=False,
    )
    try:
        if not replay.ready:
            raise ConfigError(f"{folder} holds no {length} consecutive steps: ask for fewer")
        return replay.sample(windows).to(agent.device)
    finally:
        replay.close()
