"""What makes two runs the same: the values that reach the training, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict

from llmdreamer.config import AS_BEFORE, Config, arm, is_language_model
from llmdreamer.tracking import flatten
from llmdreamer.tracking.record import Scalar

# Where a run is, how fast it goes and what is told of it; the seed tells runs of a cell apart.
_OUTSIDE = (
    *("device", "threads", "compile", "algo.compile", "trust"),
    *("output_root", "run_name", "resume", "objective"),
    *("seed", "seeds", "rerun", "tracking", "checkpoint"),
    *("eval.video", "eval.open_loop", "eval.keep_best"),
)
_LORA = ("lora", "algo.optimizer.lora_lr")


def identity(config: Config) -> dict[str, Scalar]:
    """The resolved configuration by dotted keys, without what has no effect in this run.

    LoRA's values have none without `peft`, the backbone's learning rate none with it, and what is no
    language model has neither adapters nor a checkpoint. `env.kwargs` and all else count.
    """
    dropped = [*_OUTSIDE]
    if config.backbone.factory is None:
        dropped += [f"backbone.{key}" for key in ("factory", "language_model", "options")]
    if config.algo.agent is None:
        dropped += ["algo.agent", "algo.options"]
    if not is_language_model(config.backbone):
        dropped += [*_LORA, "backbone.path"]
    elif config.algo.world_model.hf_model.peft:
        dropped.append("algo.optimizer.backbone_lr")
    else:
        dropped += _LORA
    return {
        key: value
        for key, value in flatten(asdict(config)).items()
        if (key, value) not in AS_BEFORE.items()
        and not any(f"{key}.".startswith(f"{prefix}.") for prefix in dropped)
    }


def digest(config: Config) -> str:
    """Ten hexadecimal digits: equal for equal `identity`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: Config) -> str:
    """The folder of a cell's run: readable first, then the digest that tells it from others."""
    name = f"{arm(config)}_{config.backbone.name}-{config.size}_{config.env.id}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{name}_{digest(config)}_seed{config.seed}")
