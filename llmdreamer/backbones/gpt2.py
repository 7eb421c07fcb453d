"""GPT-2: attention with learned positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import GPT2Config, GPT2Model

from llmdreamer.backbones.attention import AttentionBackbone
from llmdreamer.backbones.catalogue import Shape
from llmdreamer.backbones.checkpoint import load_pretrained
from llmdreamer.backbones.lora import add_lora
from llmdreamer.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import LoraConfig

LORA_TARGETS = ["c_attn"]


def make_gpt2(
    shape: Shape, *, context: int, pretrained: bool, path: str | None, lora: LoraConfig | None
) -> AttentionBackbone:
    """A GPT-2 without its word embeddings and head, from scratch or from a checkpoint.

    Raises:
        ConfigError: if the checkpoint cannot be had, or the context is longer than the model's.
    """
    if pretrained:
        model, input_rms = load_pretrained(path or shape.checkpoint, "gpt2", "size XS has none")
    else:
        model = GPT2Model(
            GPT2Config(
                # Tokens come as vectors: one row stands in for the word embeddings until they go.
                vocab_size=1,
                n_positions=shape.positions,
                n_embd=shape.width,
                n_layer=shape.layers,
                n_head=shape.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="sdpa",  # type: ignore[call-arg]
            )
        )
        input_rms = 1.0
    positions = int(model.config.n_positions)
    if context > positions:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this GPT-2 has {positions} positions"
        )
    model.wte = None  # type: ignore[assignment]
    if lora is not None:
        add_lora(model, lora, LORA_TARGETS)
    return AttentionBackbone(model, context, input_rms, learned_positions=positions)
