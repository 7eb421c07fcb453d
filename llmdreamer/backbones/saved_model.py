"""Saves the transformers model of a backbone in the formats of transformers and peft, and loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from llmdreamer.backbones.model_loading import MINIMAL_VOCABULARY
from llmdreamer.utils.errors import ConfigError, first_line

_MODEL_WEIGHTS, _ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
"""Prefix of the names in peft's files: a `PeftModel` has two modules around the model."""
ADAPTER = "default"
"""The name that peft gives an adapter without a name."""


def transformers_model(backbone: nn.Module) -> PreTrainedModel | None:
    """Return the model inside a backbone; None if the backbone is not from transformers."""
    model = getattr(backbone, "model", None)
    return model if isinstance(model, PreTrainedModel) else None


def has_adapters(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights without adapters by `save_pretrained`; `AutoModel.from_pretrained` loads them.

    Tokens are vectors, so the model has no word embeddings. The files have a table of one word, all zeros.
    """
    plain = _plain_model(model)
    weights = {name: value.cpu() for name, value in _base_weights(model).items()}
    for name in plain.state_dict().keys() - weights.keys():
        weights[name] = torch.zeros(plain.state_dict()[name].shape)
    plain.load_state_dict(weights, assign=True)
    plain.save_pretrained(folder, max_shard_size="1000GB")  # one file


def save_adapters(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the LoRA adapters in peft's format; `PeftModel.from_pretrained(base_model, folder)` loads them.

    Args:
        base: directory or hub name of the model that the adapters belong to, for their configuration.
    """
    from peft import get_peft_model_state_dict  # importing peft is slow

    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {f"{_PEFT_PREFIX}{name}": value.cpu().contiguous() for name, value in weights.items()},
        folder / _ADAPTER_WEIGHTS,
    )
    config: Any = model.peft_config[ADAPTER]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)


def load_saved(backbone: nn.Module, model_folder: Path, adapter_folder: Path) -> None:
    """Load what `save_model` and `save_adapters` wrote into a backbone of the same shape.

    Raises:
        ConfigError: if the files are of another model.
    """
    model = transformers_model(backbone)
    if model is None:
        raise ConfigError(f"{model_folder}: the configuration has no transformers model")
    saved = load_file(model_folder / _MODEL_WEIGHTS)
    own = _base_weights(model)
    if missing := sorted(own.keys() - saved.keys()):
        raise ConfigError(f"{model_folder}: lacks {missing[0]}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])
    if has_adapters(model):
        from peft import set_peft_model_state_dict

        adapters = load_file(adapter_folder / _ADAPTER_WEIGHTS)
        weights = {name.removeprefix(_PEFT_PREFIX): value for name, value in adapters.items()}
        set_peft_model_state_dict(model, weights)


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to a model repository of the hub, which is created if missing; return its address.

    Raises:
        ConfigError: if the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        message = "Export of an llmdreamer run"
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"--push-to-hub {repository}: {reason}; the files are in {folder}"
        ) from error
    return str(address)


def _plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same shape on the meta device, with word embeddings and without adapters."""
    config = type(model.config).from_dict(model.config.to_dict() | MINIMAL_VOCABULARY)
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModel.from_config(config)
    return plain


def _base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of the model without adapters, by the names that they have in a plain model.

    peft keeps the original of an adapted layer in `base_layer`, and that of a layer which it trains whole
    (`modules_to_save`) in `original_module`.
    """
    weights = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    return weights
