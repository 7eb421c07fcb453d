"""Catalog of backbones: factory, published checkpoints and shapes from scratch of each family.

The configuration reads it, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdreamer.utils.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Shape:
    """One size of one family. `checkpoint` is its name on the Hugging Face hub, if published."""

    width: int
    layers: int
    checkpoint: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further values of the Hugging Face configuration of a model from scratch."""


@dataclass(frozen=True)
class Family:
    """A named backbone.

    Args:
        model_type: architecture, as transformers names it; None if it is not from transformers.
        sizes: shape by model size.
        factory: dotted name of the function that makes it from the configuration.
        language_model: True if it has weights to load and layers to adapt (`pretrained`, `peft`).
        any_width: True if `backbone.width` may replace the width of the size.
        reference: True if it is the reference arm with DreamerV3's own posterior.
    """

    model_type: str | None
    sizes: Mapping[str, Shape]
    factory: str = "llmdreamer.backbones.huggingface.make_huggingface"
    language_model: bool = True
    any_width: bool = False
    reference: bool = False


def _gpt2(width: int, layers: int, heads: int, positions: int, name: str | None = None) -> Shape:
    checkpoint = name and f"openai-community/{name}"
    config = {"num_attention_heads": heads, "max_position_embeddings": positions}
    return Shape(width, layers, checkpoint, config)


def _rotary(
    width: int,
    layers: int,
    checkpoint: str | None,
    *,
    heads: int,
    kv: int,
    ffn: int,
    theta: float,
    **more: Any,
) -> Shape:
    config = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
    return Shape(width, layers, checkpoint, config | more)


def _pythia(width: int, layers: int, heads: int, name: str | None = None) -> Shape:
    checkpoint = name and f"EleutherAI/{name}"
    config = {"num_attention_heads": heads, "intermediate_size": 4 * width}
    return Shape(width, layers, checkpoint, config)


def _mamba2(width: int, layers: int, head: int = 64, state: int = 128) -> Shape:
    heads = 2 * width // head
    config = {"num_heads": heads, "head_dim": head, "state_size": state, "n_groups": 1}
    return Shape(width, layers, None, config)


CATALOG: dict[str, Family] = {
    "gpt2": Family(
        "gpt2",
        {
            "XS": _gpt2(128, 2, 4, 128),
            "S": _gpt2(768, 12, 12, 1024, "gpt2"),
            "M": _gpt2(1024, 24, 16, 1024, "gpt2-medium"),
            "L": _gpt2(1280, 36, 20, 1024, "gpt2-large"),
        },
    ),
    "smollm2": Family(
        "llama",
        {
            "XS": _rotary(128, 2, None, heads=4, kv=2, ffn=384, theta=1e5),
            "S": _rotary(576, 30, "HuggingFaceTB/SmolLM2-135M", heads=9, kv=3, ffn=1536, theta=1e5),
            "M": _rotary(
                960, 32, "HuggingFaceTB/SmolLM2-360M", heads=15, kv=5, ffn=2560, theta=1e5
            ),
            "L": _rotary(
                2048, 24, "HuggingFaceTB/SmolLM2-1.7B", heads=32, kv=32, ffn=8192, theta=1.3e5
            ),
        },
    ),
    # No Qwen3 as small as S is published.
    "qwen3": Family(
        "qwen3",
        {
            "XS": _rotary(128, 2, None, heads=4, kv=2, ffn=384, theta=1e6, head_dim=32),
            "M": _rotary(
                1024, 28, "Qwen/Qwen3-0.6B", heads=16, kv=8, ffn=3072, theta=1e6, head_dim=128
            ),
            "L": _rotary(
                2048, 28, "Qwen/Qwen3-1.7B", heads=16, kv=8, ffn=6144, theta=1e6, head_dim=128
            ),
        },
    ),
    "pythia": Family(
        "gpt_neox",
        {
            "XS": _pythia(128, 2, 4),
            "S": _pythia(512, 6, 8, "pythia-70m"),
            "M": _pythia(768, 12, 12, "pythia-160m"),
            "L": _pythia(1024, 24, 16, "pythia-410m"),
        },
    ),
    "mamba": Family(
        "mamba",
        {
            "XS": Shape(128, 4),
            "S": Shape(768, 24, "state-spaces/mamba-130m-hf"),
            "M": Shape(1024, 48, "state-spaces/mamba-370m-hf"),
            "L": Shape(1536, 48, "state-spaces/mamba-790m-hf"),
        },
    ),
    # The hub's state-spaces/mamba2-* are in the original format, which transformers does not read.
    "mamba2": Family(
        "mamba2",
        {
            "XS": _mamba2(128, 4, head=32, state=16),
            "S": _mamba2(768, 24),
            "M": _mamba2(1024, 48),
            "L": _mamba2(1536, 48),
        },
    ),
    # A GRU of width D has 6 D² weights: these widths give it gpt2's count (12 D² a layer) to 1%.
    "gru": Family(
        None,
        {"XS": Shape(256, 1), "S": Shape(3764, 1), "M": Shape(7096, 1), "L": Shape(10864, 1)},
        "llmdreamer.backbones.gru.make_gru",
        language_model=False,
        any_width=True,
        reference=True,
    ),
    # XS has gpt2's number of weights. The others have the `deter` of the 100M, 200M and 400M sizes in
    # danijar/dreamerv3 (configs.yaml of 2025), whose 1M size has 512.
    "block_gru": Family(
        None,
        {"XS": Shape(720, 1), "S": Shape(6144, 1), "M": Shape(8192, 1), "L": Shape(12288, 1)},
        "llmdreamer.backbones.block_gru.make_block_gru",
        language_model=False,
        any_width=True,
        reference=True,
    ),
}
GENERIC_HF = "hf"
"""Name of the backbone that can be any causal model of transformers, with its own type and shape."""

# A transformers architecture runs as attention under our mask if it is listed by the kind of its
# positions, and by our scan if it is in SCAN_FUNCTIONS. All others encode each window again.
# tests/backbones tests the backbone laws for every listed architecture.
ROTARY_POSITIONS = frozenset(
    ["gemma3_text", "gpt_neox", "granite", "llama", "mistral", "olmo2", "phi", "qwen2", "qwen3"]
    + ["smollm3", "stablelm", "starcoder2"]
)
LEARNED_POSITIONS = frozenset({"gpt2"})
IGNORES_ATTENTION_KWARGS = frozenset({"stablelm"})
"""Architectures whose `forward` does not pass extra keyword arguments on to its attention."""
SCAN_FUNCTIONS = {
    "mamba": "llmdreamer.backbones.mamba.mamba_mixer",
    "mamba2": "llmdreamer.backbones.mamba2.mamba2_mixer",
}
"""Function that runs a layer of a state-space model, see `llmdreamer.backbones.state_space`."""
LORA_TARGETS = {"mamba": ["in_proj"], "mamba2": ["in_proj"]}
"""Layers that LoRA adapts, for architectures without a default in peft."""


def family_of(name: str) -> Family:
    """Return the family of a backbone; `hf` has no sizes.

    Raises:
        ConfigError: if the backbone does not exist.
    """
    if name == GENERIC_HF:
        return Family(None, {})
    if name not in CATALOG:
        names = [*CATALOG, GENERIC_HF]
        raise ConfigError(
            f"backbone={name}: choose from {', '.join(names)}{did_you_mean(name, names)}"
        )
    return CATALOG[name]


def shape_of(name: str, size: str) -> Shape:
    """Return the shape of a backbone at a size.

    Raises:
        ConfigError: if the backbone does not exist or does not have the size.
    """
    sizes = family_of(name).sizes
    if size not in sizes:
        raise ConfigError(f"backbone={name} has no size {size}; choose from {', '.join(sizes)}")
    return sizes[size]
