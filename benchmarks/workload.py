"""The workload of the benchmarks: one gradient update on random data, timed by phase."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]

from llmdreamer import config
from llmdreamer.agent.agent import Agent
from llmdreamer.config import Config
from llmdreamer.training import step
from llmdreamer.training.clock import count_flops
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
"""The shapes of SheepRL's dreamer_v3_XS."""
PHASES = ("world model", "imagination", "behavior", "backward", "optimizer")


def compose(overrides: Sequence[str]) -> Config:
    """Compose and check the configuration of a command line."""
    import hydra

    config.register()
    with hydra.initialize_config_dir(str(ROOT / "conf")):
        return config.load(hydra.compose("config", overrides=list(overrides)), list(overrides))


class Update:
    """One learner with one batch. A call makes an update and returns its seconds.

    After a call, `phases` holds the seconds of each phase. On a GPU, a phase ends when its kernels do.

    Args:
        clock: returns seconds, as wall time or CPU time.
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
        # The slow critic is a copy, and is not counted.
        self.parameters -= sum(p.numel() for p in agent.behavior.slow_critic.parameters())
        self.batch = random_batch(self.config, self.device)
        self.phases: dict[str, float] = defaultdict(float)

    def __call__(self) -> float:
        self.phases = defaultdict(float)
        self._wrap_phases()  # each time: all `Update`s patch the same function `imagine`
        begin = self._now()
        self.learner.update(self.batch)
        return self._now() - begin

    def flops(self) -> float:
        """Count the FLOP of the matrix products in one update."""
        with uncompiled(self.config.algo.compile):
            return count_flops(lambda: self.learner.update(self.batch))[1]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def _wrap_phases(self) -> None:
        """Time the calls of `Learner.update`. The learner's own clock does not wait for the device."""
        agent, optimizer = self.learner.agent, self.learner.optimizer
        self._time(agent.world_model, "loss", "world model")
        self._time(step, "imagine", "imagination")
        self._time(agent.behavior, "imagination_loss", "behavior")
        self._time(agent.behavior, "replay_loss", "behavior")
        self._time(agent.behavior, "update_slow_critic", "behavior")
        self._time(optimizer, "step", "backward")
        self._time(optimizer.inner, "step", "optimizer", within="backward")

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
    """Make B sequences of T + 1 steps with CartPole's shapes; some contain the start of an episode."""
    shape = (cfg.algo.per_rank_batch_size, cfg.algo.per_rank_sequence_length + 1)
    generator = torch.Generator().manual_seed(1)
    is_first = torch.rand(shape, generator=generator) < 0.02
    terminated = torch.zeros(shape, dtype=torch.bool)
    terminated[:, :-1] = is_first[:, 1:]
    choice = torch.randint(2, shape, generator=generator)
    batch = SequenceBatch(
        {"state": torch.randn(*shape, 4, generator=generator)},
        torch.nn.functional.one_hot(choice, 2).float(),
        torch.ones(shape),
        is_first,
        terminated,
    )
    return batch.to(device)


def gemm_peak(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    side: int = 2048,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure the FLOP/s of the fastest of ten square matrix products."""
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
    """Format values as `median [min, max]`."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
