"""Where the windows come from that a world model is measured on: fresh episodes, or the replay."""

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

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig, Config

SEED = 2_000_003
"""Added to the run's seed: neither training nor evaluation begins an episode as these begin."""
STREAMS = 8
LENGTHS = 3  # rows of each stream, in windows
SAMPLES = 8


def usual_context(algo: AlgoConfig, horizon: int) -> int:
    """Rows looked at such that the whole window is no longer than the sequences of training."""
    return max(1, algo.per_rank_sequence_length - horizon)


def foretell(agent: Agent, config: Config, windows: int, seed: int) -> OpenLoop:
    """The usual measurement, of fresh experience: as far ahead as the policy is trained in dreams."""
    horizon = config.algo.horizon
    context = usual_context(config.algo, horizon)
    batch = fresh_windows(agent, config, windows, context + horizon, seed)
    return measured(agent, batch, context, SAMPLES)


def measured(agent: Agent, batch: SequenceBatch, context: int, samples: int) -> OpenLoop:
    """`measure`, with the agent as it acts, not as it trains."""
    training = agent.training
    agent.eval()
    found = measure(agent.world_model, batch, context, samples)
    agent.train(training)
    return found


def fresh_windows(
    agent: Agent, config: Config, windows: int, length: int, seed: int
) -> SequenceBatch:
    """Random windows of `length` rows of episodes that nothing was trained on.

    The policy acts as in training. The windows are of the first LENGTHS * `length` steps of STREAMS
    environments, so of the beginnings of long episodes.
    """
    steps = LENGTHS * length
    training = agent.training
    agent.eval()
    envs = make_vector(config.env, STREAMS, seed + SEED)
    try:
        with TemporaryDirectory() as folder:
            # An episode of one step is two rows.
            capacity = STREAMS * 2 * steps
            replay = SequenceReplay(
                Path(folder) / "replay", envs.spec, STREAMS, capacity, length, seed, online=False
            )
            collector = Collector(envs, agent, replay, seed)
            for _ in range(steps):
                collector.step(explore_at_random=False)
            batch = replay.sample(windows)
            replay.close()
    finally:
        envs.close()
        agent.train(training)
    return batch.to(next(agent.parameters()).device)


def replayed_windows(
    agent: Agent, config: Config, run_dir: Path, windows: int, length: int, seed: int
) -> SequenceBatch:
    """Random windows of `length` rows of what the run has lived and been trained on.

    Raises:
        ConfigError: if the run's replay is gone, or too short.
    """
    folder = run_dir / "replay"
    if not folder.is_dir():
        raise ConfigError(f"missing replay: {run_dir} has no replay/; leave --replay out")
    held = (config.env.num_envs, config.replay.capacity)
    replay = SequenceReplay(folder, agent.spec, *held, length, seed, online=False)
    try:
        if not replay.ready:
            raise ConfigError(f"{folder} holds no {length} rows in a row: ask for fewer")
        return replay.sample(windows).to(next(agent.parameters()).device)
    finally:
        replay.close()
