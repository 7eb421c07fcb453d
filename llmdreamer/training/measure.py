"""Measures what a run would cost, without training it: parameters, floating-point operations, memory.

A study asks for this in a process of its own: `python -m llmdreamer.training.measure CONFIG.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from llmdreamer.config import Config, from_yaml
from llmdreamer.training.clock import count_flops, peak_memory
from llmdreamer.training.trainer import Trainer
from llmdreamer.utils.device import prepare
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_line

PARAMETERS = "parameters"
NEEDS_AN_UPDATE = ("flops", "memory")


def measure(config: Config, names: Collection[str], folder: Path) -> dict[str, float]:
    """Build the parts of a run, make one update if it is needed, and return the named costs.

    Args:
        names: of `parameters` (of the agent), `flops` (of all updates of the run) and `memory` (peak bytes
            of the process, or on a GPU of torch's allocations, after one update).
        folder: for the replay; the caller removes it.

    Raises:
        ConfigError: if something that the configuration names does not exist.
    """
    algo = dataclasses.replace(config.algo, compile=False)
    trainer = Trainer(dataclasses.replace(config, algo=algo), folder)
    try:
        costs = {PARAMETERS: trainer.counts()["parameters/total"]}
        if not set(NEEDS_AN_UPDATE).isdisjoint(names):
            while not trainer.replay.ready:
                trainer.collect_step()
            sampled = trainer.replay.sample(config.algo.per_rank_batch_size)
            batch = sampled.to(trainer.device, but=trainer.envs.spec.texts)
            _, flops = count_flops(lambda: trainer.learner.update(batch))
            costs["flops"] = flops * trainer.optimizer.total_updates
            costs["memory"] = peak_memory(trainer.device)
    finally:
        trainer.close()
    return {name: float(costs[name]) for name in names}


def main(arguments: list[str]) -> None:
    """Print the costs as JSON, in the last line: `measure CONFIG.yaml NAMES TRUST`, each with commas."""
    path, names, trust = arguments
    config = from_yaml(path, [package for package in trust.split(",") if package])
    prepare(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(config, names.split(","), Path(folder))
    print_line(json.dumps(costs))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
