"""Builds all parts of a run from its configuration, trains them, and saves and restores their state."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmdreamer.agent.agent import make_agent
from llmdreamer.agent.collector import Collector, Episode
from llmdreamer.agent.restore import load_agent
from llmdreamer.config import AUTO
from llmdreamer.envs import make_vector
from llmdreamer.replay import ReplayCredit, SequenceReplay
from llmdreamer.training.clock import Clock, count_flops
from llmdreamer.training.compile import check_compiler, compile_agent, compile_errors, uncompiled
from llmdreamer.training.non_finite import SkippedUpdates, find_non_finite, trace_source
from llmdreamer.training.optimizer import SKIPPED, AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import Metrics, SequenceBatch
from llmdreamer.utils import distributed
from llmdreamer.utils.device import has_bf16, torch_device
from llmdreamer.utils.errors import ConfigError, Diverged
from llmdreamer.utils.noise import Noise
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import Config

log = logging.getLogger(__name__)
MAX_SKIP_REPORTS = 5
"""Largest number of log lines about skipped updates in a run. The metric counts all of them."""

REQUIRED_STATE = {
    *("agent", "optimizer", "non_finite", "credit", "flops_per_update"),
    *("replay", "collector", "torch_rng", "others"),
}
"""Keys that a saved state must have, to resume from it."""


class Trainer:
    """Environments, replay, agent and optimizer of one run, or of one of its processes.

    Each process has its own environments, replay and random numbers. `policy_step` and `env_step` are summed
    over all processes.

    Raises:
        ConfigError: if something that the configuration names does not exist, or so many processes would
            never train.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        algo, processes, rank = config.algo, distributed.size(), distributed.rank()
        _check_processes(config, processes)
        seed = (config.seed + rank * SeedOffset.PROCESS) % 2**32
        assert algo.learning_starts is not None, "config.load sets it"
        self.config = config
        self.prefill = algo.learning_starts
        self.device = torch_device(config.device)
        if algo.compile:
            check_compiler(self.device)
        if algo.precision == "bf16" and not has_bf16(self.device):
            log.warning("precision=bf16: this %s has no bfloat16; fp32 is faster", self.device.type)
        torch.manual_seed(seed)  # for code of environments that draws from torch; training does not
        self.envs = make_vector(config.env, config.env.num_envs, seed)
        if config.resume in (None, AUTO):
            self.envs.check_interface()
        self.noise = Noise(config.seed, self.device)
        with self.noise.installed():
            self.agent = make_agent(config, self.envs.spec).to(self.device)
        if algo.compile:
            compile_agent(self.agent)
        self.replay = SequenceReplay(
            run_dir / ("replay" if rank == 0 else f"replay-{rank}"),
            self.envs.spec,
            config.env.num_envs,
            config.replay.capacity // processes,
            algo.per_rank_sequence_length,
            seed,
            terminated_share=config.replay.terminated_share,
            slack=_slack(config, config.env.num_envs * processes),
        )
        # An update of n processes trains on n batches, so there are n times fewer updates.
        ratio = algo.replay_ratio / processes
        self.credit = ReplayCredit(ratio)
        total_updates = self.credit.total(algo.total_steps, self.prefill)
        self.optimizer = AgentOptimizer(self.agent, algo.optimizer, total_updates)
        self.learner: Learner = (self.agent.learner_type or Learner)(
            self.agent, self.optimizer, algo
        )
        self.collector = Collector(self.envs, self.agent, self.replay, seed, self.noise)
        self._ready = False
        self.clock = self.learner.clock = Clock()
        self.skipped = SkippedUpdates()
        self._last_batch: SequenceBatch | None = None
        self._reports = 0
        # Counted at the run's first update and saved. Counting runs other kernels, uncompiled, which round
        # differently, so a resumed run must not count again.
        self.flops_per_update = 0.0
        self.compile_seconds: float | None = None
        """Duration of the first compiled update, which is nearly all compilation; None before it."""
        distributed.broadcast_parameters(self.agent)
        if rank > 0:  # from here on, each process draws its own random numbers
            self.noise.seed(seed)

    @property
    def policy_step(self) -> int:
        return self.collector.policy_step * distributed.size()

    @property
    def env_step(self) -> int:
        return self.policy_step * self.config.env.action_repeat

    @property
    def updates(self) -> int:
        return self.optimizer.updates

    def collect_step(self) -> list[Episode]:
        """Take one policy step in every environment. Return the episodes that ended."""
        with self.clock.stage("environment"):
            return self.collector.step(explore_at_random=self.policy_step < self.prefill)

    def update_due(self) -> bool:
        """Return True if the replay ratio asks for an update before the next policy step."""
        # Each process fills its replay at another time, but all must make the same updates.
        self._ready = self._ready or distributed.all_true(self.replay.ready)
        return self._ready and self.credit.due(self.policy_step, self.prefill) > 0

    def train_updates(self) -> Iterator[Metrics]:
        """Make the gradient updates that are due, and yield the metrics of each.

        The first call may make thousands: all that were due while the replay had no whole sequence. The run
        may be saved between any two updates; a resumed run makes the rest.

        Raises:
            Diverged: if too many updates in a row were not finite.
        """
        # Read the flags of earlier updates here, because choosing an action has already synchronized.
        self.skipped.sync()
        while True:
            if self.skipped.unreported:
                self._report()
            if not self.update_due():
                return
            self.credit.count_update()
            yield self._update()

    def _update(self) -> Metrics:
        with self.clock.stage("replay"):
            sampled = self.replay.sample(self.config.algo.per_rank_batch_size)
            batch = self._last_batch = sampled.to(self.device, but=self.envs.spec.texts)
        # This stage measures the backward pass and the optimizer; the learner measures its own stages.
        with self.noise.installed(), self.clock.stage("gradient"):
            if self.flops_per_update > 0:
                metrics = self._update_timing_compilation(batch)
            else:
                with uncompiled(self.config.algo.compile):
                    metrics, self.flops_per_update = count_flops(lambda: self.learner.update(batch))
        self.skipped.add(metrics[SKIPPED])
        return metrics

    def _update_timing_compilation(self, batch: SequenceBatch) -> Metrics:
        if not self.config.algo.compile or self.compile_seconds is not None:
            return self.learner.update(batch)
        begin = time.perf_counter()
        with compile_errors():
            metrics = self.learner.update(batch)
        self.compile_seconds = time.perf_counter() - begin
        return metrics

    def _report(self) -> None:
        """Log the updates skipped since the last report, or stop the run.

        Raises:
            Diverged: if too many updates in a row were skipped.
        """
        skipped, limit = self.skipped, self.config.algo.optimizer.max_skipped
        fresh, skipped.unreported = skipped.unreported, 0
        ending = skipped.consecutive >= limit
        if self._reports >= MAX_SKIP_REPORTS and not ending:
            return
        self._reports += 1
        origin = "an earlier batch"
        # Trace only if the last update was skipped. With several processes, all would have to trace.
        if skipped.consecutive and self._last_batch is not None and distributed.size() == 1:
            origin = self._trace(self._last_batch)
        if ending:
            raise Diverged(
                f"{skipped.consecutive} updates in a row were not finite, first in {origin}"
            )
        log.warning(
            "%d updates skipped by update %d: not finite, first in %s", fresh, self.updates, origin
        )

    def _trace(self, batch: SequenceBatch) -> str:
        norm = self.agent.behavior.return_norm
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        with uncompiled(self.config.algo.compile):
            origin = trace_source(self.agent, batch, lambda: self.learner.loss(batch))
        norm.load_state_dict(before)
        return origin

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from. With several processes, the first one returns the state of all.

        Tensors are not copied, and training changes them. Call `replay.flush()` to write the replay's steps
        to disk.
        """
        if distributed.size() > 1:  # the caller flushes only the first process's replay
            self.replay.flush()
        first, *others = distributed.gather_objects(self._own_state()) or [{}]
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "non_finite": self.skipped.state_dict(),
            "credit": self.credit.state_dict(),
            "flops_per_update": self.flops_per_update,
            **first,
            "others": others,
        }

    def _own_state(self) -> dict[str, Any]:
        """Return the state of this process alone."""
        return {
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            **self.noise.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. The replay is truncated to the same policy step.

        Raises:
            ConfigError: if the checkpoint is of another agent, or of another number of processes.
        """
        others = state["others"]
        if len(others) + 1 != distributed.size():
            raise ConfigError(
                f"the checkpoint is of {len(others) + 1} processes, but this run has {distributed.size()}:"
                " start it with torchrun --nproc-per-node"
            )
        load_agent(self.agent, state["agent"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped.load_state_dict(state["non_finite"])
        self.credit.load_state_dict(state["credit"])
        # The schedule ends with the run, and the resumed run may have another length or replay ratio.
        self.optimizer.total_updates = self.credit.total(self.config.algo.total_steps, self.prefill)
        self.flops_per_update = state["flops_per_update"]
        state = [state, *others][distributed.rank()]
        self.replay.load_state_dict(state["replay"])
        if not self.collector.load_state_dict(state["collector"]):
            log.warning(
                "%s has no verified snapshot: resuming with a new episode", self.config.env.id
            )
        self.noise.load_state_dict(state)

    def counts(self) -> dict[str, float]:
        """Count the parameters of the agent and of its backbone: all, and the trainable ones."""
        return {
            "parameters/total": _count(self.agent, trainable=False),
            "parameters/trainable": _count(self.agent, trainable=True),
            "parameters/backbone": _count(self.agent.world_model.backbone, trainable=False),
            "parameters/backbone_trainable": _count(
                self.agent.world_model.backbone, trainable=True
            ),
        }

    def adapter_norms(self) -> dict[str, float]:
        """Return the metric `lora/LAYER` for each layer that has an adapter: see `lora.adapter_norms`."""
        if not self.config.algo.world_model.hf_model.peft:
            return {}
        # peft and transformers take seconds to import; with adapters they are imported already.
        from llmdreamer.backbones.lora import adapter_norms

        norms = adapter_norms(self.agent.world_model.backbone)
        return {f"lora/{layer}": norm for layer, norm in norms.items()}

    def close(self) -> None:
        self.envs.close()
        self.replay.close()


def check_finite(state: dict[str, Any]) -> None:
    """Check that a trainer's state, or an agent's alone, is finite before it replaces an older one.

    Raises:
        Diverged: if a weight or a moment is not finite.
    """
    parts = {part: state[part] for part in ("agent", "optimizer") if part in state}
    if name := find_non_finite(parts):
        raise Diverged(f"{name} is not finite")


def _slack(config: Config, envs: int) -> int:
    """Return the number of steps that each environment keeps beyond its share of the capacity.

    A resumed run returns to a checkpoint and needs the steps that were in the replay then. The oldest
    checkpoint may be `keep` + 1 intervals old, because the next one is not written yet. A policy step stores
    two steps if its episode ends. At least a quarter of the capacity is kept.
    """
    steps = min((config.checkpoint.keep + 1) * config.checkpoint.every, config.algo.total_steps)
    return max(config.replay.capacity // envs // 4, 2 * -(-steps // envs))


def _check_processes(config: Config, processes: int) -> None:
    """Check that several processes collect enough steps for a sequence; `config.checks` does so for one.

    Raises:
        ConfigError: if no environment fills a sequence.
    """
    envs, length = config.env.num_envs * processes, config.algo.per_rank_sequence_length + 1
    if processes > 1 and config.algo.total_steps // envs < length:
        raise ConfigError(
            f"nothing would train: algo.total_steps={config.algo.total_steps} in {envs} environments of"
            f" {processes} processes never fills a sequence of {length} steps"
        )


def _count(module: nn.Module, *, trainable: bool) -> float:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
