"""Names of all metrics that runs log (docs/metrics.md explains them), and which runs log them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdreamer.config.objective import parse_objectives
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config.schema import Config

_NAMES = {
    "behavior": (
        "action_value_loss actor_loss critic_loss imagined_return imagined_reward policy_entropy "
        "replay_critic_loss return_scale value_other value_terminated"
    ),
    "compute": "flops flops_per_update",
    "episode": "length return",
    "eval": "best_return best_return_sd length return return_sd",
    "open_loop": (
        "continue_accuracy continue_accuracy_repeated image_error image_error_repeated "
        "reward_error reward_error_repeated vector_error vector_error_repeated"
    ),
    "optimizer": (
        "actor_gradient_norm backbone_gradient_norm critic_gradient_norm "
        "lora_gradient_norm rest_gradient_norm skipped_updates"
    ),
    "parameters": "backbone backbone_trainable total trainable",
    "replay": "ratio train_ratio updates",
    "system": (
        "checkpoint_bytes cpu_share disk_free_bytes gpu_memory_bytes gpu_memory_share memory_bytes "
        "memory_share peak_memory_bytes process_cores"
    ),
    "time": (
        "behavior_share checkpoint_seconds checkpoint_share compile_seconds environment_share "
        "evaluation_share gradient_share imagination_share replay_share tracking_share "
        "updates_per_second world_model_share"
    ),
    "world_model": (
        "continue_loss continue_prob_other continue_prob_terminated kl_dynamics_loss "
        "kl_representation_loss loss posterior_entropy prior_entropy reconstruction_loss reward_loss"
    ),
}
_HEADLINES = ("area_under_curve", "env_step", "minutes", "return", "return_best")
METRICS = frozenset(
    f"{group}/{name}" for group, names in _NAMES.items() for name in names.split()
).union(_HEADLINES)
ADAPTER_PREFIX = "lora/"
"""Prefix of the metrics of adapted layers."""
# Logged only by runs with updates.
_UPDATE_PREFIXES = ("behavior/", "compute/", "optimizer/", "replay/", "time/", "world_model/")
_LOGGED_WITH_UPDATES = "system/peak_memory_bytes"
_LOGGED_ALWAYS = "time/checkpoint_seconds"


def refuse_unlogged(cfg: Config) -> None:
    """Refuse an objective that a run of this configuration never logs.

    An agent of another package may log more, so its objectives pass. This does not check whether an
    episode ends or whether a GPU exists.

    Raises:
        ConfigError: with what the metric requires.
    """
    for objective in parse_objectives(cfg.objective):
        required = _missing_requirement(objective.metric, cfg)
        if required is not None and cfg.algo.agent is None:
            raise ConfigError(
                f"objective={cfg.objective}: this run never logs {objective.metric}, which requires"
                f" {required}"
            )


def _missing_requirement(metric: str, cfg: Config) -> str | None:
    """Return what a run must have to log the metric, or None if this run logs it."""
    algo, starts = cfg.algo, metric.startswith
    of_adapters = starts(ADAPTER_PREFIX) or metric == "optimizer/lora_gradient_norm"
    of_updates = starts(_UPDATE_PREFIXES) or metric == _LOGGED_WITH_UPDATES
    of_updates = of_updates and metric != _LOGGED_ALWAYS
    selects_best = cfg.eval.keep_best and 0 < cfg.eval.every < algo.total_steps
    requirements = (
        (of_adapters, algo.world_model.hf_model.peft, "adapters (peft=true)"),
        (
            starts("eval/best_") or metric == "return_best",
            selects_best,
            "eval.keep_best=true and eval.every < algo.total_steps",
        ),
        (
            metric == "behavior/action_value_loss",
            algo.critic.action_value_loss_weight > 0,
            "algo.critic.action_value_loss_weight > 0",
        ),
        (starts("open_loop/"), cfg.eval.open_loop_windows > 0, "eval.open_loop_windows > 0"),
        (starts("open_loop/image"), algo.cnn_keys.decoder, "images (algo.cnn_keys.decoder)"),
        (starts("open_loop/vector"), algo.mlp_keys.decoder, "vectors (algo.mlp_keys.decoder)"),
        (starts("system/gpu"), cfg.device != "cpu", "a GPU"),
        (metric == "time/compile_seconds", algo.compile, "compile=true"),
        (of_updates, algo.replay_ratio > 0, "updates (replay_ratio > 0)"),
    )
    return next((text for applies, met, text in requirements if applies and not met), None)
