"""What no type can say: the range of every number, and the combinations that make no sense."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from llmdreamer.config.catalog import ANY, family_of
from llmdreamer.config.metrics import ADAPTERS, METRICS
from llmdreamer.config.objective import parse_objectives
from llmdreamer.config.plugins import check_trusted
from llmdreamer.config.schema import BackboneConfig, Config
from llmdreamer.utils.errors import ConfigError, did_you_mean

OPTIMIZERS = ("laprop", "adam")
PRECISIONS = ("fp32", "bf16")
POSTERIORS = ("decoupled", "coupled")
SIZES = ("XS", "S", "M", "L")
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

LARGEST = 2**53
"""Of any number: beyond it a float, as metrics are, does not count one by one."""


@dataclass(frozen=True)
class Rule:
    """A range: the test, and the words that follow `key=value:` where it fails."""

    holds: Callable[[float], bool]
    text: str


def at_least(low: float) -> Rule:
    return Rule(lambda x: x >= low, f"must be >= {low}")


def within(low: float, high: float) -> Rule:
    return Rule(lambda x: low <= x <= high, f"must be in [{low}, {high}]")


def below(low: float, high: float) -> Rule:
    return Rule(lambda x: low <= x < high, f"must be in [{low}, {high})")


positive = Rule(lambda x: x > 0, "must be > 0")
share = within(0, 1)

# Every number of the schema is here (tests/config/test_checks.py counts them); null passes.
RANGES: dict[str, Rule] = {
    "seed": below(0, 2**32),
    "threads": within(1, 1024),  # OpenMP dies of a hundred thousand, with no word
    "seeds": at_least(1),
    "algo.total_steps": at_least(1),
    "algo.learning_starts": at_least(0),
    "algo.replay_ratio": at_least(0),
    "algo.per_rank_batch_size": at_least(1),
    "algo.per_rank_sequence_length": at_least(2),
    "algo.imag_starts": at_least(1),
    "algo.horizon": at_least(1),
    "algo.gamma": share,
    "algo.lmbda": share,
    "algo.dense_units": at_least(1),
    "algo.mlp_layers": at_least(1),
    "algo.cnn_depth": at_least(1),
    "algo.world_model.stochastic_size": at_least(1),
    "algo.world_model.discrete_size": at_least(2),
    "algo.world_model.unimix": below(0, 1),
    "algo.world_model.reconstruction_weight": at_least(0),
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
    "algo.return_norm.low": share,
    "algo.return_norm.high": share,
    "algo.return_norm.minimum_scale": positive,
    "algo.optimizer.lr": positive,
    "algo.optimizer.backbone_lr": positive,
    "algo.optimizer.lora_lr": positive,
    "algo.optimizer.freeze_backbone_updates": at_least(0),
    "algo.optimizer.warmup": at_least(0),
    "algo.optimizer.anneal": share,
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
    "checkpoint.every": at_least(1),
    "checkpoint.keep": at_least(1),
    "eval.every": at_least(0),
    "eval.episodes": at_least(1),
    "eval.final_episodes": at_least(1),
    "eval.open_loop_windows": within(0, 100_000),
    "tracking.log_every": at_least(1),
}


def check(cfg: Config) -> None:
    """Refuse what cannot run.

    Raises:
        ConfigError: one line, naming the key, its value and the range or the remedy.
    """
    for key, rule in RANGES.items():
        value = attrgetter(key)(cfg)
        if value is None:
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number, and {rule.text[8:]}")
        if not rule.holds(value):
            raise ConfigError(f"{key}={value}: {rule.text}")
        if value > LARGEST:
            raise ConfigError(f"{key}={value}: must be <= {LARGEST}")
    _check_words(cfg)
    _check_foreign(cfg)
    _check_optimizer(cfg)
    _check_budget(cfg)
    _check_arm(cfg)


def _check_words(cfg: Config) -> None:
    """Texts with a form of their own."""
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
    if not DEVICE.fullmatch(cfg.device):
        raise ConfigError(f"device={cfg.device}: must be auto, cpu, cuda or cuda:N")
    # The name becomes a folder: nothing that leaves output_root may pass.
    if cfg.run_name is not None and (
        not NAME.fullmatch(cfg.run_name) or cfg.run_name in {".", ".."}
    ):
        raise ConfigError(
            f"run_name={cfg.run_name!r}: must be 1 to 100 of the characters A-Z a-z 0-9 . _ -"
        )
    for key in ("env.id", "output_root", "objective", "tracking.experiment"):
        if not attrgetter(key)(cfg).strip():
            raise ConfigError(f"{key}='': must not be empty")
    _check_objective(cfg)


def _check_objective(cfg: Config) -> None:
    """Refuse a name that no run of ours logs; an agent of somebody else's may log more."""
    for one in parse_objectives(cfg.objective):
        known = one.metric in METRICS or one.metric.startswith(ADAPTERS)
        if not known and cfg.algo.agent is None:
            near = did_you_mean(one.metric, sorted(METRICS))
            raise ConfigError(
                f"objective={cfg.objective}: no run logs {one.metric}{near} (docs/metrics.md has them all)"
            )


def _check_foreign(cfg: Config) -> None:
    """Code of other packages runs only if it was said to; what is for them is not read without them."""
    backbone, algo = cfg.backbone, cfg.algo
    for key, name in (("backbone.factory", backbone.factory), ("algo.agent", algo.agent)):
        if name is not None:
            check_trusted(key, name, cfg.trust)
    unread = [
        ("backbone.options", backbone.options, "backbone.factory", backbone.factory),
        ("backbone.language_model", backbone.language_model, "backbone.factory", backbone.factory),
        ("algo.options", algo.options, "algo.agent", algo.agent),
    ]
    for key, value, reader, name in unread:
        if value and name is None:
            raise ConfigError(f"{key}={value}: nothing reads it without {reader}")


def _check_optimizer(cfg: Config) -> None:
    """Each kind has a way to clip of its own, and nothing reads the other's."""
    config = cfg.algo.optimizer
    if config.kind not in OPTIMIZERS:
        near = did_you_mean(config.kind, OPTIMIZERS)
        raise ConfigError(
            f"algo.optimizer.kind={config.kind}: choose from {', '.join(OPTIMIZERS)}{near}"
        )
    if config.kind == "adam" and config.agc is not None:
        raise ConfigError(
            f"algo.optimizer.agc={config.agc} is for kind=laprop: set it to null, and clip"
        )
    if config.kind == "laprop":
        if config.agc is None:
            raise ConfigError("algo.optimizer.agc=null: kind=laprop clips by it")
        for key, default in (
            ("clip", None),
            ("behavior_clip", None),
            ("behavior_eps", None),
        ):
            if (value := getattr(config, key)) != default:
                raise ConfigError(f"algo.optimizer.{key}={value} is for kind=adam")


def _check_budget(cfg: Config) -> None:
    """Data must reach the first update, and sequences must fit where they are kept."""
    algo, sequence = cfg.algo, cfg.algo.per_rank_sequence_length
    # A sequence of T steps is T + 1 rows of one environment: the first is its context.
    if cfg.replay.capacity // cfg.env.num_envs < sequence + 1:
        raise ConfigError(
            f"replay.capacity={cfg.replay.capacity}: one sequence of {sequence + 1} rows does not fit"
            f" (env.num_envs={cfg.env.num_envs} share it)"
        )
    if algo.learning_starts is not None and algo.learning_starts >= algo.total_steps:
        raise ConfigError(
            f"nothing would train: algo.learning_starts={algo.learning_starts} of"
            f" algo.total_steps={algo.total_steps}"
        )
    if algo.total_steps // cfg.env.num_envs < sequence + 1:
        raise ConfigError(
            f"nothing would train: algo.total_steps={algo.total_steps} with"
            f" env.num_envs={cfg.env.num_envs} never fills a sequence of {sequence + 1} rows"
        )
    if algo.imag_starts is not None and algo.imag_starts > sequence:
        raise ConfigError(
            f"algo.imag_starts={algo.imag_starts}: a sequence has {sequence} positions"
            " (algo.per_rank_sequence_length); null takes them all"
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


def _check_arm(cfg: Config) -> None:
    """What a backbone cannot be asked for."""
    hf, backbone = cfg.algo.world_model.hf_model, cfg.backbone
    name = backbone.name
    # What is no language model has neither weights to load nor layers to adapt.
    if not is_language_model(backbone):
        if hf.peft:
            raise ConfigError(f"backbone={name} takes no LoRA: set peft=false")
        if hf.from_pretrained:
            raise ConfigError(f"backbone={name} has no pretrained weights: set pretrained=false")
        if backbone.path is not None:
            raise ConfigError(f"backbone.path={backbone.path}: backbone={name} has no checkpoint")
    free = backbone.factory is None and family_of(name).any_width
    if backbone.width is not None and not free:
        raise ConfigError(f"backbone.width={backbone.width}: backbone={name} has its own")
    frozen = cfg.algo.optimizer.freeze_backbone_updates
    if frozen > 0 and not (hf.from_pretrained and not hf.peft):
        raise ConfigError(
            f"algo.optimizer.freeze_backbone_updates={frozen}: only a pretrained, fully trained backbone"
            " can be frozen first (set pretrained=true peft=false)"
        )
    _check_hf(cfg)


def _check_hf(cfg: Config) -> None:
    """`backbone=hf` is told what it is, either by its type and shape or by a checkpoint."""
    backbone, pretrained = cfg.backbone, cfg.algo.world_model.hf_model.from_pretrained
    if backbone.name != ANY or backbone.factory is not None:
        for key, value in (("model_type", backbone.model_type), ("config", backbone.config)):
            if value is not None:
                raise ConfigError(
                    f"backbone.{key}={value}: backbone={backbone.name} has its own; use backbone=hf"
                )
    elif backbone.config is not None and not isinstance(backbone.config, dict):
        raise ConfigError(f"backbone.config={backbone.config}: must be like {{hidden_size:128}}")
    elif pretrained and backbone.path is None:
        raise ConfigError("backbone=hf pretrained=true: set backbone.path to a checkpoint")
    elif pretrained and backbone.config is not None:
        raise ConfigError(
            f"backbone.config={backbone.config}: a checkpoint has its own shape;"
            " leave it out, or set pretrained=false"
        )
    elif not pretrained and backbone.model_type is None:
        raise ConfigError(
            "backbone=hf: set backbone.model_type, e.g. olmo2, and its shape by backbone.config={...}"
        )


def is_language_model(cfg: BackboneConfig) -> bool:
    """Whether a backbone has weights to load and layers to adapt.

    Raises:
        ConfigError: if there is no such backbone.
    """
    return family_of(cfg.name).language_model if cfg.factory is None else cfg.language_model


def arm(cfg: Config) -> str:
    """Name the arm of the experiment, as docs and tables do."""
    name = cfg.backbone.name
    if not is_language_model(cfg.backbone):
        if cfg.algo.world_model.posterior != "coupled":
            return name
        ours = cfg.backbone.factory is None
        return "reference" if ours and family_of(name).reference else f"{name}-coupled"
    hf = cfg.algo.world_model.hf_model
    if hf.from_pretrained:
        return "pretrained-lora" if hf.peft else "pretrained-full"
    return "random-frozen-lora" if hf.peft else "scratch"
