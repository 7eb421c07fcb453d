"""The names of all metrics that runs log, as docs/metrics.md explains them."""

from __future__ import annotations

_NAMES = {
    "behavior": (
        "actor_loss critic_loss imagined_return imagined_reward policy_entropy "
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
        "behavior_share checkpoint_seconds checkpoint_share environment_share evaluation_share "
        "gradient_share imagination_share replay_share tracking_share updates_per_second "
        "world_model_share"
    ),
    "world_model": (
        "continue_loss kl_dynamics_loss kl_representation_loss loss posterior_entropy "
        "prior_entropy reconstruction_loss reward_loss"
    ),
}
METRICS = frozenset(f"{group}/{name}" for group, names in _NAMES.items() for name in names.split())
ADAPTERS = "lora/"
"""What the names of adapted layers begin with."""
