"""Checks beyond types: the range of every number, and combinations of values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from llmdreamer.config.catalog import GENERIC_HF, family_of
from llmdreamer.config.metrics import ADAPTER_PREFIX, METRICS
from llmdreamer.config.objective import parse_objectives
from llmdreamer.config.plugins import check_trust, check_trusted
from llmdreamer.config.schema import BackboneConfig, Config
from llmdreamer.utils.errors import ConfigError, did_you_mean

OPTIMIZERS = ("laprop", "adam")
PRECISIONS = ("fp32", "bf16")
POSTERIORS = ("decoupled", "coupled")
SIZES = ("XS", "S", "M", "L")
FOLDER_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
DEVICE_PATTERN = re.compile(r"auto|cpu|cuda(:\d+)?")

LARGEST_EXPONENT = 1023
"""Bits of the largest integers that a float can approximate."""

LARGEST_EXACT_INTEGER = 2**53
"""Upper limit of every number. Metrics are floats, and a float cannot hold all integers beyond it."""

MAX_EXPERIMENT_CHARACTERS = 500  # MLflow's limit


@dataclass(frozen=True)
class Rule:
    """A range: its test, and the text after `key=value:` in the error."""

    holds: Callable[[float], bool]
    text: str


def at_least(low: float) -> Rule:
    return Rule(lambda x: x >= low, f"must be >= {low}")


def within(low: float, high: float) -> Rule:
    return Rule(lambda x: low <= x <= high, f"must be in [{low}, {high}]")


def below(low: float, high: float) -> Rule:
    return Rule(lambda x: low <= x < high, f"must be in [{low}, {high})")


positive = Rule(lambda x: x > 0, "must be > 0")
fraction = within(0, 1)

RANGES: dict[str, Rule] = {
    "seed": below(0, 2**32),
    "threads": within(1, 1024),  # with 100,000 OpenMP kills the process without a message
    "seeds": at_least(1),
    "algo.total_steps": at_least(1),
    "algo.learning_starts": at_least(0),
    "algo.replay_ratio": at_least(0),
    "algo.per_rank_batch_size": at_least(1),
    "algo.per_rank_sequence_length": at_least(2),
    "algo.imag_starts": at_least(1),
    "algo.horizon": at_least(1),
    "algo.gamma": fraction,
    "algo.lmbda": fraction,
    "algo.dense_units": at_least(1),
    "algo.mlp_layers": at_least(1),
    "algo.cnn_depth": at_least(1),
    "algo.world_model.stochastic_size": at_least(1),
    "algo.world_model.discrete_size": at_least(2),
    "algo.world_model.unimix": below(0, 1),
    "algo.world_model.vector_bins": Rule(lambda x: x == 0 or x >= 2, "must be 0 or >= 2"),
    "algo.world_model.reconstruction_weight": at_least(0),
    "algo.world_model.continue_weight": at_least(0),
    "algo.world_model.kl_dynamics_weight": at_least(0),
    "algo.world_model.kl_representation_weight": at_least(0),
    "algo.world_model.kl_free_nats": at_least(0),
    "algo.world_model.recurrent_model.recurrent_state_size": at_least(1),
    "algo.world_model.recurrent_model.dense_units": at_least(1),
    "algo.world_model.head_layers": at_least(1),
    "algo.world_model.transition_model.hidden_size": at_least(1),
    "algo.world_model.transition_model.layers": at_least(1),
    "algo.world_model.representation_model.hidden_size": at_least(1),
    "algo.world_model.representation_model.layers": at_least(1),
    "algo.world_model.hf_model.seq_len": at_least(1),
    "algo.actor.ent_coef": at_least(0),
    "algo.actor.unimix": below(0, 1),
    "algo.actor.min_std": positive,
    "algo.actor.max_std": positive,
    "algo.critic.bins": Rule(lambda x: x >= 3 and x % 2 == 1, "must be odd and >= 3"),
    "algo.critic.slow_rate": Rule(lambda x: 0 < x <= 1, "must be in (0, 1]"),
    "algo.critic.slow_regularizer_weight": at_least(0),
    "algo.critic.replay_loss_weight": at_least(0),
    "algo.critic.action_value_loss_weight": at_least(0),
    "algo.return_norm.decay": below(0, 1),
    "algo.return_norm.low": fraction,
    "algo.return_norm.high": fraction,
    "algo.return_norm.minimum_scale": positive,
    "algo.optimizer.lr": positive,
    "algo.optimizer.backbone_lr": positive,
    "algo.optimizer.lora_lr": positive,
    "algo.optimizer.freeze_backbone_updates": at_least(0),
    "algo.optimizer.warmup": at_least(0),
    "algo.optimizer.anneal": fraction,
    "algo.optimizer.max_skipped": at_least(1),
    "algo.optimizer.beta1": below(0, 1),
    "algo.optimizer.beta2": below(0, 1),
    "algo.optimizer.eps": positive,
    "algo.optimizer.agc": positive,
    "algo.optimizer.actor_lr": positive,
    "algo.optimizer.critic_lr": positive,
    "algo.optimizer.behavior_eps": positive,
    "algo.optimizer.clip": positive,
    "algo.optimizer.behavior_clip": positive,
    "backbone.width": at_least(1),
    "lora.r": at_least(1),
    "lora.alpha": at_least(1),
    "lora.dropout": below(0, 1),
    "env.num_envs": at_least(1),
    "env.action_repeat": at_least(1),
    "env.max_episode_steps": at_least(1),
    "env.max_restarts": at_least(0),
    "env.timeout": positive,
    "env.image_size": Rule(lambda x: x >= 16 and x % 16 == 0, "must be a multiple of 16"),
    "env.max_text_bytes": at_least(1),
    "replay.capacity": at_least(1),
    "replay.terminated_share": fraction,
    "checkpoint.every": at_least(1),
    "checkpoint.keep": at_least(1),
    "eval.every": at_least(0),
    "eval.episodes": at_least(1),
    "eval.final_episodes": at_least(1),
    "eval.open_loop_windows": within(0, 100_000),
    "tracking.log_every": at_least(1),
}
"""The range of every number of the schema. Null is always accepted."""


def check(cfg: Config) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        ConfigError: with the key, its value, and the range or what to do.
    """
    for key, rule in RANGES.items():
        value = attrgetter(key)(cfg)
        if value is None:
            continue
        # Python cannot convert such a number to a float, and perhaps not to text.
        if isinstance(value, int) and value.bit_length() > LARGEST_EXPONENT:
            raise ConfigError(f"{key}: this number is far too large; it {rule.text}")
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number, and {rule.text[8:]}")
        if not rule.holds(value):
            raise ConfigError(f"{key}={value}: {rule.text}")
        if value > LARGEST_EXACT_INTEGER:
            raise ConfigError(f"{key}={value}: must be <= {LARGEST_EXACT_INTEGER}")
    _check_texts(cfg)
    _check_plugins(cfg)
    _check_optimizer(cfg)
    _check_budget(cfg)
    _check_backbone(cfg)


def _check_texts(cfg: Config) -> None:
    """Check the texts that must have a given form or be one of a list."""
    if cfg.size not in SIZES:
        raise ConfigError(f"size={cfg.size}: choose from {', '.join(SIZES)} (model=...)")
    posterior = cfg.algo.world_model.posterior
    if posterior not in POSTERIORS:
        raise ConfigError(
            f"posterior={posterior}: choose from {', '.join(POSTERIORS)}"
            f"{did_you_mean(posterior, POSTERIORS)}"
        )
    if cfg.algo.precision not in PRECISIONS:
        raise ConfigError(
            f"precision={cfg.algo.precision}: choose from {', '.join(PRECISIONS)}"
            f"{did_you_mean(cfg.algo.precision, PRECISIONS)}"
        )
    if not DEVICE_PATTERN.fullmatch(cfg.device):
        raise ConfigError(f"device={cfg.device}: must be auto, cpu, cuda or cuda:N")
    # The name becomes a folder, which must stay inside output_root.
    if cfg.run_name is not None and (
        not FOLDER_NAME.fullmatch(cfg.run_name) or cfg.run_name in {".", ".."}
    ):
        raise ConfigError(
            f"run_name={cfg.run_name!r}: must be 1 to 100 of the characters A-Z a-z 0-9 . _ -"
        )
    if len(cfg.tracking.experiment) > MAX_EXPERIMENT_CHARACTERS:
        raise ConfigError(
            f"tracking.experiment={cfg.tracking.experiment[:20]}...: must have at most"
            f" {MAX_EXPERIMENT_CHARACTERS} characters, this has {len(cfg.tracking.experiment)}"
        )
    for key in ("env.id", "output_root", "objective", "tracking.experiment"):
        if not attrgetter(key)(cfg).strip():
            raise ConfigError(f"{key}='': must not be empty")
    _check_objective(cfg)


def _check_objective(cfg: Config) -> None:
    """Refuse metrics that no run logs. An agent of another package may log more."""
    for metric in (objective.metric for objective in parse_objectives(cfg.objective)):
        documented = metric in METRICS or metric.startswith(ADAPTER_PREFIX)
        if not documented and cfg.algo.agent is None:
            near = did_you_mean(metric, sorted(METRICS))
            raise ConfigError(
                f"objective={cfg.objective}: no run logs {metric} (docs/metrics.md lists all){near}"
            )


def _check_plugins(cfg: Config) -> None:
    """Refuse untrusted code of other packages, names of none, and options that no such code reads."""
    backbone, algo = cfg.backbone, cfg.algo
    check_trust(cfg.trust)
    for key, name in (("backbone.factory", backbone.factory), ("algo.agent", algo.agent)):
        if name is not None:
            check_trusted(key, name, cfg.trust)
    options = [
        ("backbone.options", backbone.options, "backbone.factory", backbone.factory),
        ("backbone.language_model", backbone.language_model, "backbone.factory", backbone.factory),
        ("algo.options", algo.options, "algo.agent", algo.agent),
    ]
    for key, value, reader, name in options:
        if value and name is None:
            raise ConfigError(
                f"{key}={value} has no effect without {reader}: set {reader}, or leave it out"
            )


def _check_optimizer(cfg: Config) -> None:
    """Refuse constants that the other kind of optimizer reads: each kind clips in its own way."""
    config = cfg.algo.optimizer
    if config.kind not in OPTIMIZERS:
        near = did_you_mean(config.kind, OPTIMIZERS)
        raise ConfigError(
            f"algo.optimizer.kind={config.kind}: choose from {', '.join(OPTIMIZERS)}{near}"
        )
    if config.kind == "adam" and config.agc is not None:
        raise ConfigError(
            f"algo.optimizer.agc={config.agc} is for kind=laprop: with kind=adam set agc=null, and clip"
        )
    if config.kind == "laprop":
        if config.agc is None:
            raise ConfigError(
                "algo.optimizer.agc=null: kind=laprop clips by agc; set it to a number > 0"
            )
        for key in ("clip", "behavior_clip", "behavior_eps"):
            if (value := getattr(config, key)) is not None:
                raise ConfigError(f"algo.optimizer.{key}={value} is for kind=adam: set it to null")


def _check_budget(cfg: Config) -> None:
    """Check that the run reaches its first update, and that sequences fit into replay."""
    algo, sequence = cfg.algo, cfg.algo.per_rank_sequence_length
    # A sequence of T steps takes T + 1 time steps of one environment: the first is its context.
    if cfg.replay.capacity // cfg.env.num_envs < sequence + 1:
        raise ConfigError(
            f"replay.capacity={cfg.replay.capacity}: a sequence of {sequence + 1} time steps does not fit"
            f" (env.num_envs={cfg.env.num_envs} environments share the capacity)"
        )
    if algo.learning_starts is not None and algo.learning_starts >= algo.total_steps:
        raise ConfigError(
            f"nothing would train: algo.learning_starts={algo.learning_starts} of"
            f" algo.total_steps={algo.total_steps}"
        )
    if algo.total_steps // cfg.env.num_envs < sequence + 1:
        raise ConfigError(
            f"nothing would train: algo.total_steps={algo.total_steps} with"
            f" env.num_envs={cfg.env.num_envs} never fills a sequence of {sequence + 1} time steps"
        )
    if algo.imag_starts is not None and algo.imag_starts > sequence:
        raise ConfigError(
            f"algo.imag_starts={algo.imag_starts}: a sequence has {sequence} positions"
            " (algo.per_rank_sequence_length); null uses all of them"
        )
    if algo.return_norm.low >= algo.return_norm.high:
        raise ConfigError(
            f"algo.return_norm.low={algo.return_norm.low}:"
            f" must be below algo.return_norm.high={algo.return_norm.high}"
        )
    if algo.actor.min_std >= algo.actor.max_std:
        raise ConfigError(
            f"algo.actor.min_std={algo.actor.min_std}:"
            f" must be below algo.actor.max_std={algo.actor.max_std}"
        )
    if not (algo.mlp_keys.encoder or algo.cnn_keys.encoder or algo.text_keys.encoder):
        raise ConfigError(
            "algo.mlp_keys.encoder, algo.cnn_keys.encoder and algo.text_keys.encoder are all empty:"
            " name the observations to learn from, e.g. algo.mlp_keys.encoder=[state]"
        )


def _check_backbone(cfg: Config) -> None:
    """Refuse options that the backbone does not have."""
    hf, backbone = cfg.algo.world_model.hf_model, cfg.backbone
    name = backbone.name
    if not is_language_model(backbone):
        if hf.peft:
            raise ConfigError(f"backbone={name} takes no LoRA: set peft=false")
        if hf.from_pretrained:
            raise ConfigError(f"backbone={name} has no pretrained weights: set pretrained=false")
        if backbone.path is not None:
            raise ConfigError(f"backbone.path={backbone.path}: backbone={name} has no checkpoint")
    any_width = backbone.factory is None and family_of(name).any_width
    if backbone.width is not None and not any_width:
        raise ConfigError(
            f"backbone.width={backbone.width}: backbone={name} has a fixed width; set it to null"
        )
    frozen = cfg.algo.optimizer.freeze_backbone_updates
    if frozen > 0 and not (hf.from_pretrained and not hf.peft):
        raise ConfigError(
            f"algo.optimizer.freeze_backbone_updates={frozen}: only a pretrained, fully trained backbone"
            " can be frozen first (set pretrained=true peft=false)"
        )
    _check_hf(cfg)


def _check_hf(cfg: Config) -> None:
    """Check that `backbone=hf`, and no other, has either a type and shape or a checkpoint."""
    backbone, pretrained = cfg.backbone, cfg.algo.world_model.hf_model.from_pretrained
    if backbone.name != GENERIC_HF or backbone.factory is not None:
        for key, value in (("model_type", backbone.model_type), ("config", backbone.config)):
            if value is not None:
                raise ConfigError(
                    f"backbone.{key}={value} is for backbone=hf, not for backbone={backbone.name}"
                )
    elif backbone.config is not None and not isinstance(backbone.config, dict):
        raise ConfigError(f"backbone.config={backbone.config}: must be like {{hidden_size:128}}")
    elif pretrained and backbone.path is None:
        raise ConfigError("backbone=hf pretrained=true: set backbone.path to a checkpoint")
    elif pretrained and backbone.config is not None:
        raise ConfigError(
            f"backbone.config={backbone.config}: a checkpoint has its own shape;"
            " leave out backbone.config, or set pretrained=false"
        )
    elif not pretrained and backbone.model_type is None:
        raise ConfigError(
            "backbone=hf: set backbone.model_type, e.g. olmo2, and its shape in backbone.config={...}"
        )


def is_language_model(cfg: BackboneConfig) -> bool:
    """Return True if a backbone has weights to load and layers to adapt.

    Raises:
        ConfigError: if the backbone does not exist.
    """
    return family_of(cfg.name).language_model if cfg.factory is None else cfg.language_model


def arm(cfg: Config) -> str:
    """Return the name of the experiment's arm, as docs and tables use it."""
    name = cfg.backbone.name
    if not is_language_model(cfg.backbone):
        if cfg.algo.world_model.posterior != "coupled":
            return name
        built_in = cfg.backbone.factory is None
        return "reference" if built_in and family_of(name).reference else f"{name}-coupled"
    hf = cfg.algo.world_model.hf_model
    if hf.from_pretrained:
        return "pretrained-lora" if hf.peft else "pretrained-full"
    return "random-frozen-lora" if hf.peft else "scratch"
