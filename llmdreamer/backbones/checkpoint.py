"""Models of transformers: pretrained, from a local directory or the hub, or from scratch by their keys."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from llmdreamer.backbones.hub import is_reachable
from llmdreamer.utils.errors import ConfigError, did_you_mean

# Tokens come as vectors: one row stands in for the word embeddings until they go.
WORDLESS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def from_scratch(model_type: str, keys: Mapping[str, Any]) -> PreTrainedModel:
    """A model with random weights and no dropout, without its language head.

    Args:
        model_type: of a causal language model, as transformers calls it.
        keys: what its configuration is told; the rest is that class's default.

    Raises:
        ConfigError: if there is no such model or key, or the values do not go together.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(f"backbone.model_type={model_type}: no causal model has this type{near}")
    try:
        default = AutoConfig.for_model(model_type)
        names = {*default.to_dict(), *default.attribute_map}
        for key in keys:
            if key not in names:
                raise ConfigError(
                    f"backbone.config.{key}: {model_type} has no such key{did_you_mean(key, names)}"
                )
        config = AutoConfig.for_model(model_type, **{**WORDLESS, **keys})
        _settle(config)
        model: PreTrainedModel = AutoModel.from_config(config)
    except ConfigError:
        raise
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"backbone.config: {model_type}: {_reason(error)}") from error
    return model


def load_pretrained(
    source: str | None, model_type: str | None, none_published: str
) -> tuple[PreTrainedModel, float]:
    """The model without its language head, dropout off, in float32, and its embeddings' RMS.

    Args:
        source: a directory that `save_pretrained` wrote, or a name on the hub.
        model_type: what the checkpoint's config must say it is; None: any causal model.
        none_published: why there is no source, for the message when it is None.

    Raises:
        ConfigError: if there is no checkpoint there, it is of another architecture, or lacks weights.
    """
    if source is None:
        raise ConfigError(
            f"pretrained=true: {none_published}; set backbone.path to a {model_type or 'causal'}"
            " checkpoint"
        )
    local = _is_directory(source)
    offline = local or not is_reachable()
    # Its warnings about an unreachable hub would stand above our one line that says so.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(
            source, local_files_only=offline, trust_remote_code=False
        )
        if model_type is not None and config.model_type != model_type:
            raise ConfigError(
                f"{source} is a {config.model_type} checkpoint, not {model_type}: choose its backbone"
            )
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(f"{source} is a {config.model_type} checkpoint: no causal model")
        _settle(config)
        disable_progress_bar()  # a bar of a second, in front of whatever else is to be said
        model, loaded = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=offline,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ConfigError:
        raise
    except UnpicklingError as error:
        raise ConfigError(
            f"{source} holds more than tensors, and was not loaded: give it as safetensors"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"backbone.path={source} needs code of its own, which is not run: have a package with it"
                " make the backbone (backbone.factory=..., trust=[...]: docs/extending.md)"
            ) from error
        if not offline or local or not isinstance(error, OSError):
            raise ConfigError(f"backbone.path={source}: {_reason(error)}") from error
        raise ConfigError(
            f"{source} is not in the cache and the hub is unreachable; point backbone.path at a "
            "local directory or set pretrained=false"
        ) from error
    # transformers draws what it does not find, with no more than a warning: random weights called pretrained.
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"{source} lacks {len(missing)} of the model's weights, such as {missing[0]}: not pretrained"
        )
    return model, embedding_rms(model.get_input_embeddings())


@torch.no_grad()
def embedding_rms(embeddings: nn.Module) -> float:
    """Root mean square of a model's word vectors, as they enter its first layer.

    They are looked up, not read from the table: Gemma's look-up scales them.
    """
    assert isinstance(embeddings, nn.Embedding)
    squares, words = 0.0, torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
    for some in words.split(4096):
        squares += embeddings(some).double().square().mean(-1).sum().item()
    return float((squares / len(words)) ** 0.5)


def _settle(config: PreTrainedConfig) -> None:
    """Turn dropout off, for which a world model has no use, and take the one-kernel form of GPT-2's GELU.

    Dropout goes by many names: attn_pdrop, hidden_dropout, layerdrop. `gelu_new` is the same formula as
    `gelu_pytorch_tanh`, in eight passes over memory instead of one.
    """
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, key, 0.0)
        elif value == "gelu_new":
            setattr(config, key, "gelu_pytorch_tanh")


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


def _reason(error: Exception) -> str:
    """The last line of an error of the libraries, whose first may only say where it happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (
        (lines[-1] if isinstance(error, StrictDataclassError) else lines[0])
        if lines
        else repr(error)
    )
