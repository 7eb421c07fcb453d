"""What makes two runs the same: the values that reach the training, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from llmdreamer.config import BackboneConfig, Config, arm, is_language_model
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.flatten import Scalar, flatten

# Where a run is, how fast it goes and what is told of it; the seed tells runs of a cell apart.
_OUTSIDE = (
    *("device", "threads", "algo.compile", "trust"),
    *("output_root", "run_name", "resume", "objective"),
    *("seed", "seeds", "rerun", "tracking", "checkpoint"),
    *("eval.video", "eval.open_loop_windows", "eval.keep_best"),
)
_LORA = ("lora", "algo.optimizer.lora_lr")


def without_effect(params: Mapping[str, Scalar]) -> tuple[str, ...]:
    """The dotted keys that do not count in a run of these parameters, each with all below it.

    LoRA's values have none without `peft`, the backbone's learning rate none with it, and what is no
    language model has neither adapters nor a checkpoint. `env.kwargs` and all else count.

    Args:
        params: by dotted keys, typed or as MLflow gives them back (`"None"`, `"True"`). A record of an
            earlier version may lack some: what hangs on those then counts.
    """
    dropped = [*_OUTSIDE]
    if _is_none(params, "backbone.factory"):
        dropped += [f"backbone.{key}" for key in ("factory", "language_model", "options")]
    if _is_none(params, "algo.agent"):
        dropped += ["algo.agent", "algo.options"]
    peft = str(params.get("algo.world_model.hf_model.peft"))
    if _is_language_model(params) is False:
        dropped += [*_LORA, "backbone.path"]
    elif peft == "True":
        dropped.append("algo.optimizer.backbone_lr")
    elif peft == "False":
        dropped += _LORA
    return tuple(dropped)


def is_among(key: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted key is one of `prefixes` or lies below one."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes)


def identity(config: Config) -> dict[str, Scalar]:
    """The resolved configuration by dotted keys, without what has no effect in this run."""
    params = flatten(asdict(config))
    dropped = without_effect(params)
    return {key: value for key, value in params.items() if not is_among(key, dropped)}


def _is_none(params: Mapping[str, Scalar], key: str) -> bool:
    return str(params.get(key)) == "None"


def _is_language_model(params: Mapping[str, Scalar]) -> bool | None:
    """None if it cannot be told: of a backbone that this version does not know."""
    factory = None if _is_none(params, "backbone.factory") else str(params["backbone.factory"])
    says_so = str(params.get("backbone.language_model")) == "True"
    name = str(params.get("backbone.name"))
    try:
        return is_language_model(BackboneConfig(name, factory=factory, language_model=says_so))
    except ConfigError:
        return None


def digest(config: Config) -> str:
    """Ten hexadecimal digits: equal for equal `identity`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: Config) -> str:
    """The folder of a cell's run: readable first, then the digest that tells it from others."""
    name = f"{arm(config)}_{config.backbone.name}-{config.size}_{config.env.id}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{name}_{digest(config)}_seed{config.seed}")
