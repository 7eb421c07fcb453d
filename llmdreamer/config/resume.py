"""The values that may change when a run resumes."""

from __future__ import annotations

from enum import Enum


class Change(Enum):
    """A rule for one value of a run that resumes."""

    ALWAYS = "always"
    """Length of the run, where it runs, what is shown: any command may change it."""
    TYPED = "typed"
    """Ratio and rates: they may be typed with `resume=FOLDER`. `resume=auto` requires equal values."""
    NEVER = "never"
    """What the run learns, and from what: with another value, it would be another run."""


# An entry stands for a value or for a whole section. Each value of the schema has exactly one entry.
TABLE = {
    Change.ALWAYS: (
        *("resume", "run_name", "output_root", "device", "threads", "trust"),
        *("objective", "seeds", "rerun", "eval", "tracking", "checkpoint"),
        *("algo.total_steps", "algo.compile", "algo.optimizer.max_skipped"),
        *("env.processes", "env.max_restarts", "env.timeout"),
    ),
    Change.TYPED: (
        *("algo.replay_ratio", "algo.precision"),
        *("algo.optimizer.lr", "algo.optimizer.backbone_lr", "algo.optimizer.lora_lr"),
        *("algo.optimizer.actor_lr", "algo.optimizer.critic_lr"),
        *("algo.optimizer.warmup", "algo.optimizer.anneal"),
    ),
    Change.NEVER: (
        *("size", "recipe", "seed", "backbone", "lora", "replay"),
        *("env.id", "env.num_envs", "env.action_repeat", "env.max_episode_steps", "env.kwargs"),
        *("env.image_size", "env.max_text_bytes", "env.vector_scale"),
        *("algo.name", "algo.agent", "algo.options", "algo.learning_starts"),
        *("algo.per_rank_batch_size", "algo.per_rank_sequence_length"),
        *("algo.imag_starts", "algo.horizon", "algo.gamma", "algo.lmbda"),
        *("algo.dense_units", "algo.mlp_layers", "algo.cnn_depth"),
        *("algo.mlp_keys", "algo.cnn_keys", "algo.text_keys"),
        *("algo.world_model", "algo.actor", "algo.critic", "algo.return_norm"),
        *("algo.optimizer.kind", "algo.optimizer.freeze_backbone_updates"),
        *("algo.optimizer.beta1", "algo.optimizer.beta2", "algo.optimizer.eps"),
        *("algo.optimizer.agc", "algo.optimizer.behavior_eps"),
        *("algo.optimizer.clip", "algo.optimizer.behavior_clip"),
    ),
}


def change_on_resume(leaf: str) -> Change:
    """Return the rule for the value under a dotted key."""
    (change,) = [
        change
        for change, entries in TABLE.items()
        if any(f"{leaf}.".startswith(f"{entry}.") for entry in entries)
    ]
    return change
