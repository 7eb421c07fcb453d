"""Identity of a run: the configuration values that affect training, as a digest and a folder name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from llmdreamer.config import BackboneConfig, Config, arm, is_language_model
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.flatten import Scalar, flatten

# Place, speed and reporting of a run. The seed is not part of a cell.
_NO_EFFECT_ON_TRAINING = (
    *("device", "threads", "algo.compile", "trust"),
    *("output_root", "run_name", "resume", "objective"),
    *("seed", "seeds", "rerun", "tracking", "checkpoint"),
    *("eval.video", "eval.open_loop_windows", "eval.keep_best"),
)
_LORA = ("lora", "algo.optimizer.lora_lr")


def keys_without_effect(params: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Return the dotted keys that have no effect in a run; each stands for all keys below it, too.

    LoRA's values have no effect without `peft`, and the backbone's learning rate has none with it. A
    backbone that is not a language model has neither adapters nor a checkpoint.

    Args:
        params: by dotted keys, typed or as MLflow returns them (`"None"`, `"True"`).
    """
    ignored = [*_NO_EFFECT_ON_TRAINING]
    if _is_none(params, "backbone.factory"):
        ignored += [f"backbone.{key}" for key in ("factory", "language_model", "options")]
    if _is_none(params, "algo.agent"):
        ignored += ["algo.agent", "algo.options"]
    peft = str(params.get("algo.world_model.hf_model.peft"))
    if _is_language_model(params) is False:
        ignored += [*_LORA, "backbone.path"]
    elif peft == "True":
        ignored.append("algo.optimizer.backbone_lr")
    elif peft == "False":
        ignored += _LORA
    return tuple(ignored)


def has_prefix(key: str, prefixes: Sequence[str]) -> bool:
    """Return True if a dotted key is one of `prefixes` or lies below one."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes)


def identity(config: Config) -> dict[str, Scalar]:
    """Return the configuration by dotted keys, without the keys that have no effect in this run."""
    params = flatten(asdict(config))
    ignored = keys_without_effect(params)
    return {key: value for key, value in params.items() if not has_prefix(key, ignored)}


def _is_none(params: Mapping[str, Scalar], key: str) -> bool:
    return str(params.get(key)) == "None"


def _is_language_model(params: Mapping[str, Scalar]) -> bool | None:
    """Return None for a backbone that this version does not have."""
    factory = None if _is_none(params, "backbone.factory") else str(params["backbone.factory"])
    declared = str(params.get("backbone.language_model")) == "True"
    name = str(params.get("backbone.name"))
    try:
        return is_language_model(BackboneConfig(name, factory=factory, language_model=declared))
    except ConfigError:
        return None


def digest(config: Config) -> str:
    """Return ten hexadecimal digits that are equal for equal `identity`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: Config) -> str:
    """Return the folder name of a cell's run: a readable part, the digest and the seed."""
    name = f"{arm(config)}_{config.backbone.name}-{config.size}_{config.env.id}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{name}_{digest(config)}_seed{config.seed}")
