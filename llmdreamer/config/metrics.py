"""The names of all metrics that runs log, as docs/metrics.md explains them, and which runs log them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdreamer.config.objective import parse_objectives
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config.schema import Config

_NAMES = {
    "behavior": (
        "action_value_loss actor_loss critic_loss imagined_return imagined_reward policy_entropy "
        "replay_critic_loss return_scale"
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
        "continue_loss kl_dynamics_loss kl_representation_loss loss posterior_entropy "
        "prior_entropy reconstruction_loss reward_loss"
    ),
}
METRICS = frozenset(f"{group}/{name}" for group, names in _NAMES.items() for name in names.split())
ADAPTERS = "lora/"
"""What the names of adapted layers begin with."""
# Logged with updates, and not without any.
_LEARNED = ("behavior/", "compute/", "optimizer/", "replay/", "time/", "world_model/")
_LEARNED_TOO = "system/peak_memory_bytes"
_NOT_LEARNED = "time/checkpoint_seconds"


def refuse_unlogged(cfg: Config) -> None:
    """Refuse an objective that a run of this configuration never logs; another's agent may log more.

    Raises:
        ConfigError: naming what it lacks. Whether an episode ends, or a GPU is there, it does not tell.
    """
    for one in parse_objectives(cfg.objective):
        what = _lacking(one.metric, cfg)
        if what is not None and cfg.algo.agent is None:
            raise ConfigError(
                f"objective={cfg.objective}: this run never logs {one.metric}, which takes {what}"
            )


def _lacking(metric: str, cfg: Config) -> str | None:
    algo, begins = cfg.algo, metric.startswith
    adapters = begins(ADAPTERS) or metric == "optimizer/lora_gradient_norm"
    learned = (begins(_LEARNED) or metric == _LEARNED_TOO) and metric != _NOT_LEARNED
    a_choice = cfg.eval.keep_best and 0 < cfg.eval.every < algo.total_steps
    needs = (
        (adapters, algo.world_model.hf_model.peft, "adapters (peft=true)"),
        (begins("eval/best_"), a_choice, "eval.keep_best=true and eval.every < algo.total_steps"),
        (
            metric == "behavior/action_value_loss",
            algo.critic.action_value_loss_weight > 0,
            "algo.critic.action_value_loss_weight > 0",
        ),
        (begins("open_loop/"), cfg.eval.open_loop_windows > 0, "eval.open_loop_windows > 0"),
        (begins("open_loop/image"), algo.cnn_keys.decoder, "images (algo.cnn_keys.decoder)"),
        (begins("open_loop/vector"), algo.mlp_keys.decoder, "vectors (algo.mlp_keys.decoder)"),
        (begins("system/gpu"), cfg.device != "cpu", "a GPU"),
        (metric == "time/compile_seconds", algo.compile, "compile=true"),
        (learned, algo.replay_ratio > 0, "updates (replay_ratio > 0)"),
    )
    return next((what for asked, there, what in needs if asked and not there), None)
