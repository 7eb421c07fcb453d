"""The work that the benchmarks time: one gradient update on random numbers, phase by phase."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
os.environ["LLMDREAMER_ROOT"] = str(ROOT)

from llmdreamer import config
from llmdreamer.agent.agent import Agent
from llmdreamer.config import Config
from llmdreamer.training import step
from llmdreamer.training.clock import counted
from llmdreamer.training.compile import compile_agent, uncompiled
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.types import EnvSpec, SequenceBatch

CARTPOLE = EnvSpec({"state": (4,)}, 2, True)
PEER_BATCH, PEER_LENGTH = 16, 64
PEER_SHAPES = [
    "model=XS",
    "algo.imag_starts=null",
    "algo.dense_units=256",
    "algo.world_model.stochastic_size=32",
    "algo.world_model.discrete_size=32",
    "algo.world_model.recurrent_model.dense_units=256",
    "algo.world_model.transition_model.hidden_size=256",
    "algo.world_model.representation_model.hidden_size=256",
    f"algo.per_rank_batch_size={PEER_BATCH}",
    f"algo.per_rank_sequence_length={PEER_LENGTH}",
    f"algo.world_model.hf_model.seq_len={PEER_LENGTH}",
]
"""Those of SheepRL's dreamer_v3_XS."""
PHASES = ("world model", "imagination", "behaviour", "backward", "optimiser")


def compose(overrides: Sequence[str]) -> Config:
    """The checked configuration of a command line."""
    import hydra

    config.register()
    with hydra.initialize_config_dir(str(ROOT / "conf")):
        return config.load(hydra.compose("config", overrides=list(overrides)), list(overrides))


class Update:
    """One learner and one batch: call it for an update, which returns its seconds.

    After a call `phases` holds the seconds of each phase. On a GPU a phase ends when its work does.

    Args:
        clock: whose seconds.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        device: str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.config = compose(overrides)
        self.device = torch.device(device)
        torch.manual_seed(0)
        agent = Agent(self.config, CARTPOLE).to(self.device)
        if self.config.algo.compile:
            compile_agent(agent)
        optimizer = AgentOptimizer(agent, self.config.algo.optimizer, 1000)
        self.learner = step.Learner(agent, optimizer, self.config.algo)
        self.parameters = sum(p.numel() for p in agent.parameters())
        # The slow critic is a copy, which nobody counts.
        self.parameters -= sum(p.numel() for p in agent.behavior.slow_critic.parameters())
        self.batch = random_batch(self.config, self.device)
        self.phases: dict[str, float] = defaultdict(float)

    def __call__(self) -> float:
        self.phases = defaultdict(float)
        self._watch()  # `imagine` is one for all of a process: the last to watch it is told
        begin = self._now()
        self.learner.update(self.batch)
        return self._now() - begin

    def flops(self) -> float:
        """Of the matrix products of one update."""
        with uncompiled(self.config.algo.compile):
            return counted(lambda: self.learner.update(self.batch))[1]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def _watch(self) -> None:
        """Put a clock around what `Learner.update` calls: its own does not wait for a device."""
        agent, optimizer = self.learner.agent, self.learner.optimizer
        self._time(agent.world_model, "loss", "world model")
        self._time(step, "imagine", "imagination")
        self._time(agent.behavior, "imagination_loss", "behaviour")
        self._time(agent.behavior, "replay_loss", "behaviour")
        self._time(agent.behavior, "update_slow_critic", "behaviour")
        self._time(optimizer, "step", "backward")
        self._time(optimizer.inner, "step", "optimiser", within="backward")

    def _time(self, owner: Any, name: str, phase: str, within: str | None = None) -> None:
        call: Callable[..., Any] = getattr(owner, name)
        call = getattr(call, "__wrapped_by_benchmark__", call)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            try:
                return call(*args, **kwargs)
            finally:
                seconds = self._now() - begin
                self.phases[phase] += seconds
                if within is not None:
                    self.phases[within] -= seconds

        timed.__wrapped_by_benchmark__ = call  # type: ignore[attr-defined]
        setattr(owner, name, timed)


def random_batch(cfg: Config, device: torch.device) -> SequenceBatch:
    """B sequences of T + 1 rows of CartPole's shapes, with an episode's start in some of them."""
    rows = (cfg.algo.per_rank_batch_size, cfg.algo.per_rank_sequence_length + 1)
    chance = torch.Generator().manual_seed(1)
    is_first = torch.rand(rows, generator=chance) < 0.02
    terminated = torch.zeros(rows, dtype=torch.bool)
    terminated[:, :-1] = is_first[:, 1:]
    choice = torch.randint(2, rows, generator=chance)
    batch = SequenceBatch(
        {"state": torch.randn(*rows, 4, generator=chance)},
        torch.nn.functional.one_hot(choice, 2).float(),
        torch.ones(rows),
        is_first,
        terminated,
    )
    observations = {key: value.to(device) for key, value in batch.observations.items()}
    rest = (batch.action, batch.reward, batch.is_first, batch.terminated)
    return SequenceBatch(observations, *(part.to(device) for part in rest))


def gemm_peak(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    side: int = 2048,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of the best of ten square matrix products: what the machine gives today."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        if device != "cpu":
            torch.cuda.synchronize()
        begin = clock()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    return 2 * side**3 / min(seconds)


def spread(values: Sequence[float]) -> str:
    """`median [least, most]`."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
