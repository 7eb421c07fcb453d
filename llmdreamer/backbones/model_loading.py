"""Loads transformers models: pretrained, from a local directory or the hub, or from scratch."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
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
from llmdreamer.utils.files import expand_user

# Tokens are vectors, so the word embeddings are removed later. One word is the smallest table. All
# special tokens are this word, because some configurations refuse null and RoBERTa counts positions from the
# padding token.
MINIMAL_VOCABULARY = {
    "vocab_size": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "head_dim", "max_position_embeddings"),
)
"""Standard names of sizes that a model cannot have at 0. A type may have names of its own for them."""
HEAD_SIZE = re.compile("head_(dim|size)|(d|dim)_head|d_kv|kv_channels")
"""Matches keys that set the size of a head. Without one, it is the width divided by the heads."""
EMBEDDING_CHUNK = 4096
"""Words that are looked up at once to measure the embeddings."""


def model_from_scratch(model_type: str, keys: Mapping[str, Any]) -> PreTrainedModel:
    """Return a model with random weights and no dropout, without its language head.

    Args:
        model_type: of a causal language model, as transformers names it.
        keys: values of its configuration; others keep the defaults of transformers.

    Raises:
        ConfigError: if the model or a key does not exist, or the values contradict each other.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(f"backbone.model_type={model_type}: no causal model has this type{hint}")
    try:
        default = AutoConfig.for_model(model_type)
        names = {*default.to_dict(), *default.attribute_map}
        for key in keys:
            if key not in names:
                raise ConfigError(
                    f"backbone.config.{key}: {model_type} has no such key{did_you_mean(key, names)}"
                )
        _check_sizes(default, keys)
        config = AutoConfig.for_model(model_type, **{**MINIMAL_VOCABULARY, **keys})
        _check_one_model(config, f"backbone.model_type={model_type}")
        _adjust(config)
        model: PreTrainedModel = AutoModel.from_config(config)
    except ConfigError:
        raise
    except Exception as error:  # any of 200 model types, with any values
        raise ConfigError(f"backbone.config: {model_type}: {reason(error)}") from error
    return model


def _check_sizes(default: PreTrainedConfig, keys: Mapping[str, Any]) -> None:
    """Check sizes that transformers accepts, or refuses without naming the key. It checks their types itself.

    Raises:
        ConfigError: if a size is below 1, if the heads do not divide the width, or if the key-value heads
            do not divide the heads.
    """
    # The key of each size as it is typed: `num_hidden_layers`, or GPT-2's `n_layer`.
    typed = {name: default.attribute_map.get(name, name) for name in SIZES}
    typed |= {name: name for name in SIZES if name in keys}
    defaults = default.to_dict()
    sizes = {name: keys.get(key, defaults.get(key)) for name, key in typed.items()}
    for key in typed.values():
        if key in keys and isinstance(keys[key], int) and keys[key] < 1:
            raise ConfigError(f"backbone.config.{key}={keys[key]}: must be >= 1")
    has_head_size = any(HEAD_SIZE.search(key) for key in defaults)
    divisors = [("num_attention_heads", "num_key_value_heads")]
    if not has_head_size:
        divisors += [("hidden_size", "num_attention_heads")]
    for whole, part in divisors:
        # If only the whole is typed, transformers may choose another part.
        if typed[part] in keys and _is_no_multiple(sizes[whole], sizes[part]):
            raise ConfigError(
                f"backbone.config.{typed[part]}={sizes[part]}: must divide {typed[whole]}={sizes[whole]}"
            )


def _is_no_multiple(whole: Any, part: Any) -> bool:
    return isinstance(whole, int) and isinstance(part, int) and whole % part != 0


FETCH_HINT = (
    "a small one without the hub: llmdreamer fetch stories15m DIR,"
    " then backbone=smollm2 backbone.path=DIR"
)
"""How to get a checkpoint, for messages."""


def load_pretrained(
    source: str | None, model_type: str | None, missing_source_reason: str, alternative: str = ""
) -> tuple[PreTrainedModel, float]:
    """Return a model without its language head, in float32 and without dropout, and its embeddings' RMS.

    Args:
        source: a directory that `save_pretrained` wrote, or a name on the hub.
        model_type: required architecture of the checkpoint; None: any causal model.
        missing_source_reason: start of the error message if `source` is None.
        alternative: another setting that the message advises, such as "model=S, or ".

    Raises:
        ConfigError: if there is no checkpoint, its architecture is another, or weights are missing.
    """
    if source is None:
        raise ConfigError(
            f"pretrained=true: {missing_source_reason}; set {alternative}backbone.path to a"
            f" {model_type or 'causal'} checkpoint ({FETCH_HINT})"
        )
    local = _is_local_directory(source)
    offline = local or not is_reachable()
    # Hides its warnings about an unreachable hub: the ConfigError below says it in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(
            source, local_files_only=offline, trust_remote_code=False
        )
        if model_type is not None and config.model_type != model_type:
            raise ConfigError(
                f"backbone.path={source}: a {config.model_type} checkpoint, not {model_type}; choose"
                " the backbone of its type, or backbone=hf"
            )
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(
                f"backbone.path={source}: {config.model_type} is not a causal model; choose a causal"
                " language model"
            )
        _check_one_model(config, f"backbone.path={source}")
        _adjust(config)
        disable_progress_bar()
        model, loading_info = AutoModel.from_pretrained(
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
            f"backbone.path={source}: not loaded, its file has more than tensors and could run code;"
            " convert it to safetensors"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"backbone.path={source}: needs its own code, which is not run; make the backbone in a"
                " package (backbone.factory=..., trust=[...]: docs/extending.md)"
            ) from error
        if not offline or local or not isinstance(error, OSError):
            raise ConfigError(f"backbone.path={source}: {reason(error)}") from error
        raise ConfigError(
            f"backbone.path={source}: no such directory, not in the local cache, and the hub is"
            f" unreachable; set backbone.path to a directory ({FETCH_HINT}), or set pretrained=false"
        ) from error
    # transformers only warns about missing weights and draws them at random.
    if missing := sorted(loading_info["missing_keys"]):
        raise ConfigError(
            f"backbone.path={source}: lacks {len(missing)} of the model's weights, such as"
            f" {missing[0]}; choose a complete checkpoint"
        )
    return model, embedding_rms(model.get_input_embeddings())


@torch.no_grad()
def embedding_rms(embeddings: nn.Module) -> float:
    """Return the root mean square of a model's word embeddings, as they enter its first layer.

    The module is called, because some scale their table: Gemma does.

    Raises:
        ConfigError: if the model has no table of words.
    """
    if not isinstance(embeddings, nn.Embedding):
        raise ConfigError(
            f"its words are read by a {type(embeddings).__name__}, not by a table; choose another model"
        )
    squares, words = 0.0, torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
    for chunk in words.split(EMBEDDING_CHUNK):
        squares += embeddings(chunk).double().square().mean(-1).sum().item()
    return float((squares / len(words)) ** 0.5)


def _check_one_model(config: PreTrainedConfig, request: str) -> None:
    """Check that a model has one width, and is not made of several models, as for text and images.

    Raises:
        ConfigError: names the type of its text model.
    """
    if isinstance(getattr(config, "hidden_size", None), int):
        return
    text = config.get_text_config(decoder=True).model_type
    known = text != config.model_type and text in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    raise ConfigError(
        f"{request}: {config.model_type} is made of several models; choose"
        f" {f'its text model, {text}' if known else 'a causal language model'}"
    )


def _adjust(config: PreTrainedConfig) -> None:
    """Disable dropout, and replace `gelu_new` by the same formula in one kernel.

    Dropout has many names: attn_pdrop, hidden_dropout, layerdrop. `gelu_new` and `gelu_pytorch_tanh`
    are the same formula; the first makes eight passes over its input, the second one.
    """
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, key, 0.0)
        elif value == "gelu_new":
            setattr(config, key, "gelu_pytorch_tanh")


def _is_local_directory(source: str) -> bool:
    """Return True if `source` is a directory, False if it is a hub name such as `owner/name`.

    Raises:
        ConfigError: if it can only be a directory and does not exist.
    """
    path = expand_user(source)
    if path.is_dir():
        return True
    if source.startswith((os.sep, ".", "~")) or source.count("/") > 1:
        raise ConfigError(
            f"backbone.path={source}: no such directory; give a directory with a checkpoint, or a hub"
            " name"
        )
    return False


def reason(error: Exception) -> str:
    """Return the line of a library's error that says what is wrong.

    This is the first line. For `StrictDataclassError` it is the last, because its first line only names the
    place.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):  # the message of a KeyError is the key alone
        return repr(error)
    return lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
