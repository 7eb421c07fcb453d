"""Everything of a run that moves, built from its configuration, saved and restored as one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmdreamer.agent.agent import make_agent
from llmdreamer.agent.collector import Collector, Episode
from llmdreamer.agent.restore import load_agent
from llmdreamer.envs import make_vector
from llmdreamer.replay import ReplayCredit, SequenceReplay
from llmdreamer.training.clock import Clock, counted
from llmdreamer.training.compile import check_compiler
from llmdreamer.training.non_finite import Guard, not_finite, trace
from llmdreamer.training.optimizer import SKIPPED, AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import Metrics, SequenceBatch
from llmdreamer.utils import distributed
from llmdreamer.utils.device import has_bf16, torch_device
from llmdreamer.utils.errors import ConfigError, Diverged

if TYPE_CHECKING:
    from llmdreamer.config import Config

log = logging.getLogger(__name__)
REPORTS = 5  # lines about skipped updates; beyond them, the metric says how many

PARTS = {
    *("agent", "optimizer", "credit", "flops_per_update"),
    *("replay", "collector", "torch_rng"),
}
"""Of a trainer's state: those that no checkpoint to go on from is without."""

PROCESS_SEED = 7_000_003
"""Between the seeds of two processes of a run; evaluation's are elsewhere."""


class Trainer:
    """Environments, replay, agent and optimiser of one run, or of one of its processes.

    Of several processes each has its own environments, replay and noise. `policy_step` and `env_step` count
    the steps of all.

    Raises:
        ConfigError: if something asked for is not there, or so many processes would never train.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        torch.manual_seed(config.seed)
        algo, processes, rank = config.algo, distributed.size(), distributed.rank()
        _check_processes(config, processes)
        seed = (config.seed + rank * PROCESS_SEED) % 2**32
        assert algo.learning_starts is not None, "config.load fills it in"
        self.config = config
        self.prefill = algo.learning_starts
        self.device = torch_device(config.device)
        if algo.compile:
            check_compiler(self.device)
        if algo.precision == "bf16" and not has_bf16(self.device):
            log.warning("precision=bf16: this %s has no bfloat16; fp32 is faster", self.device.type)
        self.envs = make_vector(config.env, config.env.num_envs, seed)
        self.agent = make_agent(config, self.envs.spec).to(self.device)
        self.replay = SequenceReplay(
            run_dir / ("replay" if rank == 0 else f"replay-{rank}"),
            self.envs.spec,
            config.env.num_envs,
            config.replay.capacity // processes,
            algo.per_rank_sequence_length,
            seed,
            slack=_slack(config, config.env.num_envs * processes),
        )
        # An update of n processes reads n batches, so there are n times fewer of them.
        ratio = algo.replay_ratio / processes
        self.credit = ReplayCredit(ratio)
        total_updates = self.credit.total(algo.total_steps, self.prefill)
        self.optimizer = AgentOptimizer(self.agent, algo.optimizer, total_updates)
        self.learner: Learner = (self.agent.learner_type or Learner)(
            self.agent, self.optimizer, algo
        )
        self.collector = Collector(self.envs, self.agent, self.replay, seed)
        self._ready = False
        self.clock = self.learner.clock = Clock()
        self.guard = Guard()
        self._newest: SequenceBatch | None = None  # batch that was learned from
        self._reports = 0
        # Counted at the run's first update and kept: counting takes other kernels, and nothing compiled,
        # which rounds differently, so a resumed run must not do it again.
        self.flops_per_update = 0.0
        distributed.broadcast_parameters(self.agent)
        if rank > 0:  # the weights are drawn alike, all else is not
            torch.manual_seed(seed)

    @property
    def policy_step(self) -> int:
        return self.collector.policy_step * distributed.size()

    @property
    def env_step(self) -> int:
        return self.policy_step * self.config.env.action_repeat

    @property
    def updates(self) -> int:
        return self.optimizer.updates

    @property
    def compile_seconds(self) -> float | None:
        """What the first compiled update of this process took; None without one."""
        return self.learner.pieces.seconds

    def live(self) -> list[Episode]:
        """One policy step in every environment; the episodes that ended by it."""
        with self.clock.stage("environment"):
            return self.collector.step(explore_at_random=self.policy_step < self.prefill)

    def owes(self) -> bool:
        """Whether the replay ratio asks for an update before the next policy step."""
        # Streams differ by their episodes' ends, and an update is made by all or by none.
        self._ready = self._ready or distributed.all_true(self.replay.ready)
        return self._ready and self.credit.due(self.policy_step, self.prefill) > 0

    def learn(self) -> Iterator[Metrics]:
        """The gradient updates that are owed by now, each made as it is asked for.

        The first ones may be thousands: they make up for all that waited for the first sequence. Between any
        two the run may be saved, and the next life begins with those that are left.

        Raises:
            Diverged: if too many of them in a row were not finite.
        """
        # Not at once: by now an action has been waited for, so the device has nothing left to do.
        self.guard.look()
        while True:
            if self.guard.fresh:
                self._report()
            if not self.owes():
                return
            self.credit.count_update()
            yield self._update()

    def _update(self) -> Metrics:
        with self.clock.stage("replay"):
            sampled = self.replay.sample(self.config.algo.per_rank_batch_size)
            batch = self._newest = sampled.to(self.device, but=self.envs.spec.texts)
        # What of an update is in no stage of the learner's own: the backward pass and the optimiser.
        with self.clock.stage("gradient"):
            if self.flops_per_update > 0:
                metrics = self.learner.update(batch)
            else:
                with self.learner.pieces.eagerly():
                    metrics, self.flops_per_update = counted(lambda: self.learner.update(batch))
        self.guard.note(metrics[SKIPPED])
        return metrics

    def _report(self) -> None:
        """Tell of updates skipped since the last time, or give up.

        Raises:
            Diverged: if they are too many in a row.
        """
        guard, limit = self.guard, self.config.algo.optimizer.max_skipped
        fresh, guard.fresh = guard.fresh, 0
        ending = guard.in_a_row >= limit
        if self._reports >= REPORTS and not ending:
            return
        self._reports += 1
        origin = "an earlier batch"
        # The newest update was one of them; of several processes none could be traced alone.
        if guard.in_a_row and self._newest is not None and distributed.size() == 1:
            origin = self._trace(self._newest)
        if ending:
            raise Diverged(f"{guard.in_a_row} updates in a row were not finite, first in {origin}")
        log.warning(
            "%d updates skipped by update %d: not finite, first in %s", fresh, self.updates, origin
        )

    def _trace(self, batch: SequenceBatch) -> str:
        norm = self.agent.behavior.return_norm
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        with self.learner.pieces.eagerly():
            origin = trace(self.agent, batch, lambda: self.learner.loss(batch))
        norm.load_state_dict(before)
        return origin

    def state_dict(self) -> dict[str, Any]:
        """All that moves, of all processes on the first of them. Tensors are those that training changes;
        the rows that it counts on are on the disk after `replay.flush()`."""
        if distributed.size() > 1:  # nobody else waits for the rows of the others
            self.replay.flush()
        first, *others = distributed.gather_objects(self._own_state()) or [{}]
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            "credit": self.credit.state_dict(),
            "flops_per_update": self.flops_per_update,
            **first,
            "others": others,
        }

    def _own_state(self) -> dict[str, Any]:
        """What processes do not share."""
        state = {
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the replay is cut back to where it was.

        Raises:
            ConfigError: if the checkpoint is of an agent of another shape, or of more or fewer processes.
        """
        others = state.get("others", [])
        if len(others) + 1 != distributed.size():
            raise ConfigError(
                f"the checkpoint is of {len(others) + 1} processes, this run has {distributed.size()}:"
                " start it with torchrun --nproc-per-node"
            )
        load_agent(self.agent, state["agent"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "guard" in state:  # not in checkpoints from before there was one
            self.guard.load_state_dict(state["guard"])
        self.credit.load_state_dict(state["credit"])
        # The schedule ends with the run, at the ratio of now.
        self.optimizer.total_updates = self.credit.total(self.config.algo.total_steps, self.prefill)
        self.flops_per_update = state["flops_per_update"]
        state = [state, *others][distributed.rank()]
        self.replay.load_state_dict(state["replay"])
        if not self.collector.load_state_dict(state["collector"]):
            log.warning(
                "%s has no verified snapshot: going on at an episode boundary", self.config.env.id
            )
        torch.set_rng_state(state["torch_rng"].cpu())
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def counts(self) -> dict[str, float]:
        """Parameters: of the whole agent, of its backbone, and those of either that train."""
        return {
            "parameters/total": _count(self.agent, trainable=False),
            "parameters/trainable": _count(self.agent, trainable=True),
            "parameters/backbone": _count(self.agent.world_model.backbone, trainable=False),
            "parameters/backbone_trainable": _count(
                self.agent.world_model.backbone, trainable=True
            ),
        }

    def adapter_norms(self) -> dict[str, float]:
        """`lora/LAYER` of each layer that has an adapter: see `lora.adapter_norms`."""
        if not self.config.peft:
            return {}
        # peft and transformers take seconds to import; here they are.
        from llmdreamer.backbones.lora import adapter_norms

        norms = adapter_norms(self.agent.world_model.backbone)
        return {f"lora/{layer}": norm for layer, norm in norms.items()}

    def close(self) -> None:
        self.envs.close()
        self.replay.close()


def check_finite(state: dict[str, Any]) -> None:
    """See that a trainer's state, or an agent's alone, may replace an older one.

    Raises:
        Diverged: if a weight or a moment is not finite.
    """
    parts = {part: state[part] for part in ("agent", "optimizer") if part in state}
    if name := not_finite(parts):
        raise Diverged(f"{name} is not finite")


def _slack(config: Config, envs: int) -> int:
    """Rows of each environment to keep beyond its share of the capacity, for checkpoints to go back to.

    As many as may be newer than the oldest checkpoint kept, but a quarter of the capacity at least. That is
    one more interval than are kept, since the next is under way, and two rows a step, for episodes of one.
    """
    steps = min((config.checkpoint.keep + 1) * config.checkpoint.every, config.algo.total_steps)
    return max(config.replay.capacity // envs // 4, 2 * -(-steps // envs))


def _check_processes(config: Config, processes: int) -> None:
    """What `config.checks` sees to for one process, for several of them."""
    envs, rows = config.env.num_envs * processes, config.algo.per_rank_sequence_length + 1
    if processes > 1 and config.algo.total_steps // envs < rows:
        raise ConfigError(
            f"nothing would train: algo.total_steps={config.algo.total_steps} in {envs} environments of"
            f" {processes} processes never fills a sequence of {rows} rows"
        )


def _count(module: nn.Module, *, trainable: bool) -> float:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
