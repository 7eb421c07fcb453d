"""Rotary positions whose angles depend on how many tokens a pass has."""

from __future__ import annotations

from transformers import PreTrainedConfig


def constant_rotation_limit(config: PreTrainedConfig) -> int | None:
    """Return up to how many tokens the angles are the same in every pass; None: for any number.

    Source: `dynamic_rope_update` of transformers. There one large position changes the angles of all
    positions in the pass.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    # Some models have settings for each kind of layer.
    settings = [rope, *[value for value in rope.values() if isinstance(value, dict)]]
    limits = []
    for setting in settings:
        rope_type = setting.get("rope_type") or ""
        if rope_type == "longrope":
            limits.append(int(setting["original_max_position_embeddings"]))
        elif "dynamic" in rope_type:
            limits.append(int(config.max_position_embeddings))
    return min(limits, default=None)
