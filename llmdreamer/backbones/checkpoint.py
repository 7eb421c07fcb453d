"""Loads pretrained weights from a local directory or the Hugging Face hub, or says why it cannot."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from llmdreamer.errors import ConfigError


def load_pretrained(
    source: str | None, model_type: str, none_published: str
) -> tuple[PreTrainedModel, float]:
    """The model without its language head, dropout off, in float32, and its embeddings' RMS.

    Args:
        source: a directory that `save_pretrained` wrote, or a name on the hub.
        model_type: what the checkpoint's config must say it is.
        none_published: why there is no source, for the message when it is None.

    Raises:
        ConfigError: if there is no checkpoint there, or it is of another architecture.
    """
    if source is None:
        raise ConfigError(
            f"pretrained=true: {none_published}; set backbone.path to a {model_type} checkpoint"
        )
    local = _is_directory(source)
    # Its warnings about an unreachable hub would stand above our one line that says so.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        if config.model_type != model_type:
            raise ConfigError(
                f"{source} is a {config.model_type} checkpoint, not {model_type}: choose its backbone"
            )
        for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout"):
            if hasattr(config, key):
                setattr(config, key, 0.0)
        model = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=local,
            trust_remote_code=False,
        )
    except ConfigError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        if local or not isinstance(error, OSError):
            raise ConfigError(f"backbone.path={source}: {_first_line(error)}") from error
        raise ConfigError(
            f"{source} is not in the cache and the hub is unreachable; point backbone.path at a "
            "local directory or set pretrained=false"
        ) from error
    rms = model.get_input_embeddings().weight.detach().square().mean().sqrt().item()
    return model, rms


def _is_directory(source: str) -> bool:
    """Whether `source` names a directory, not a hub repository such as `owner/name`.

    Raises:
        ConfigError: if it can only be a directory, and there is none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return True
    if source.startswith((os.sep, ".", "~")) or source.count("/") > 1:
        raise ConfigError(f"backbone.path={source}: no such directory")
    return False


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
