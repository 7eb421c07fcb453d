"""The record of a run: its identity, metrics and files, for its folder and for MLflow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmdreamer.config import arm, to_yaml
from llmdreamer.config.identity import digest
from llmdreamer.tracking import RunInfo, Tracker
from llmdreamer.tracking.origin import origin
from llmdreamer.tracking.parent import PARENT_VARIABLE
from llmdreamer.tracking.trial import VARIANT_TAG, trial_tags
from llmdreamer.training.clock import peak_memory
from llmdreamer.training.headline import Headline, headline_note
from llmdreamer.training.optimizer import SKIPPED
from llmdreamer.types import Metrics
from llmdreamer.utils import distributed
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.flatten import flatten
from llmdreamer.utils.redact import as_typed

if TYPE_CHECKING:
    from llmdreamer.checkpoint.async_writer import CheckpointWriter
    from llmdreamer.config import Config
    from llmdreamer.training.trainer import Trainer

TERMINATED = "_terminated"
"""Ending of the names of metrics of terminated steps, which not every batch has."""


class Journal:
    """Logs the metrics of a run against its environment steps.

    Args:
        tracker: None in all processes but rank 0; they log nothing.
    """

    def __init__(self, trainer: Trainer, writer: CheckpointWriter, tracker: Tracker | None) -> None:
        self.newest: dict[str, float] = {}  # value of every metric
        self._trainer = trainer
        self._writer = writer
        self._tracker = tracker
        self._updates_before = trainer.updates
        self._headline = Headline(None if tracker is None else tracker.files.metrics)

    def log(self, metrics: dict[str, float]) -> None:
        """Log metrics at the current environment step; those of an evaluation with the headline metrics."""
        results = self._headline.results(metrics, self._trainer.env_step)
        metrics = metrics | results
        self.newest |= metrics
        if self._tracker is None:
            return
        if results:
            self._tracker.describe(headline_note(self.newest))
        with self._trainer.clock.stage("tracking"):
            self._tracker.log(metrics, self._trainer.env_step)

    def log_updates(self, updates: Sequence[Metrics]) -> dict[str, float]:
        """Log the mean metrics of some updates without skipped ones, and their costs.

        All processes must call it. If every update was skipped, the means are NaN. A metric of terminated
        steps is NaN in an update whose batch has none. Its mean is over the other updates. If there are no
        others, the metric is left out.
        """
        # One copy from the device for all of them.
        values = torch.stack(
            [torch.stack(list(update.values())).float() for update in updates]
        ).cpu()
        names = list(updates[0])
        applied = values[:, names.index(SKIPPED)] == 0  # equal in all processes
        values = values[applied]
        of_terminated = torch.tensor([name.endswith(TERMINATED) for name in names])
        missing = values.isnan() & of_terminated
        sums, counts = values.masked_fill(missing, 0.0).sum(0), (~missing).float().sum(0)
        total, count = distributed.mean(torch.stack([sums, counts]))
        means = dict(zip(names, (total / count).tolist(), strict=True))
        del means[SKIPPED]
        for name in names:
            if name.endswith(TERMINATED) and math.isnan(means[name]):
                del means[name]
        means |= self._costs() | self._writer.take_metrics()
        self.log(means)
        return means

    def _costs(self) -> dict[str, float]:
        """Return progress, time since the last call, operations and updates so far, memory."""
        trainer = self._trainer
        elapsed, shares = trainer.clock.read()
        speed = (trainer.updates - self._updates_before) / elapsed
        self._updates_before = trainer.updates
        flops = distributed.size() * trainer.flops_per_update
        algo = trainer.config.algo
        steps = max(1, trainer.policy_step - trainer.prefill)
        ratio = trainer.updates * distributed.size() / steps
        return {
            **self._headline.progress(trainer.env_step),
            "time/updates_per_second": speed,
            **{f"time/{stage}_share": share for stage, share in shares.items()},
            "compute/flops": trainer.updates * flops,
            "compute/flops_per_update": flops,
            "system/peak_memory_bytes": peak_memory(trainer.device),
            "optimizer/skipped_updates": float(trainer.skipped.total),
            "replay/updates": float(trainer.updates),
            "replay/ratio": ratio,
            "replay/train_ratio": ratio * algo.per_rank_batch_size * algo.per_rank_sequence_length,
        }


def start_tracker(
    trainer: Trainer, run_dir: Path, overrides: Sequence[str], uri: str, cursor: int | None
) -> Tracker:
    """Write the configuration and the environment's spaces, and start or resume the record of the run.

    Args:
        overrides: the overrides that the user typed.
        cursor: position in the record to resume at; see `Tracker.start`.
    """
    config, environment = trainer.config, run_dir / "environment.json"
    # A resumed run replaces them. A kill or a full disk must leave the old files complete.
    write_atomically(run_dir / "config.yaml", to_yaml(config))
    spec = {"id": config.env.id, **asdict(trainer.envs.spec)}
    write_atomically(environment, json.dumps(spec, indent=1) + "\n")
    info = describe_run(config, run_dir, overrides)
    tracker = Tracker.start(run_dir, info, uri, config.tracking.experiment, cursor)
    tracker.log_artifact(environment)
    return tracker


def describe_run(config: Config, run_dir: Path, overrides: Sequence[str]) -> RunInfo:
    """Return the name, parameters and tags of a run, and its place in its sweep."""
    algo, hf = config.algo, config.algo.world_model.hf_model
    tags = {
        "arm": arm(config),
        "size": config.size,
        "recipe": config.recipe,
        "backbone": config.backbone.name,
        "posterior": algo.world_model.posterior,
        "env": config.env.id,
        "seed": str(config.seed),
        "peft": str(hf.peft).lower(),
        "pretrained": str(hf.from_pretrained).lower(),
        "replay_ratio": str(algo.replay_ratio),
        "cell": digest(config),
        **origin(),
        "overrides": as_typed(overrides),
    }
    tags |= trial_tags() or {}
    parent = os.environ.get(PARENT_VARIABLE)
    # The runs of a sweep differ in its variant, and MLflow's table shows about 20 characters of a name.
    name = tags.get(VARIANT_TAG) or (
        f"{arm(config)} {config.backbone.name}-{config.size} {config.env.id} seed={config.seed}"
    )
    path = run_dir / "config.yaml"
    return RunInfo(name, flatten(asdict(config)), tags, parent, path)
