"""DreamerV3's own memory, against its author's way of computing it, in NumPy."""

import numpy as np
import pytest
import torch

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.block_gru import BLOCKS, BlockGRUBackbone
from llmdreamer.errors import ConfigError

D, N = 64, 5


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-4) * weight


def block_linear(x, kernel, bias=0.0):
    parts = x.reshape(*x.shape[:-1], len(kernel), -1)
    return np.einsum("nki,kio->nko", parts, kernel).reshape(len(x), -1) + bias


def core(deter, token, weights):
    """One step, each group beside its own copy of the summary, as in danijar/dreamerv3's `RSSM._core`."""
    x0 = deter @ weights["summary.0.weight"].T + weights["summary.0.bias"]
    x0 = silu(rms_norm(x0, weights["summary.1.weight"]))
    groups = deter.reshape(N, BLOCKS, -1)
    x = np.concatenate([groups, x0[:, None].repeat(BLOCKS, 1)], -1).reshape(N, -1)
    # The kernel that reads a group has its part of the plain layer's columns below it.
    per_group = weights["from_summary.weight"].reshape(BLOCKS, D // BLOCKS, -1).transpose(0, 2, 1)
    kernel = np.concatenate([weights["from_group.weight"], per_group], 1)
    x = block_linear(x, kernel, weights["from_summary.bias"]) + token
    x = silu(rms_norm(x, weights["norm.weight"]))
    x = block_linear(x, weights["gates.weight"], weights["gates.bias"])
    gates = np.split(x.reshape(N, BLOCKS, -1), 3, -1)
    reset, candidate, update = (gate.reshape(N, -1) for gate in gates)
    candidate = np.tanh(sigmoid(reset) * candidate)
    update = sigmoid(update - 1)
    return update * candidate + (1 - update) * deter


@torch.no_grad()
def test_a_step_is_the_one_of_its_authors_code():
    torch.manual_seed(0)
    backbone = BlockGRUBackbone(D).double()
    for weight in backbone.parameters():
        weight.add_(0.3 * torch.randn_like(weight))  # biases and scales are not what they were made
    weights = {name: value.numpy() for name, value in backbone.state_dict().items()}
    deter, state = np.zeros((N, D)), backbone.initial(N)
    for _ in range(4):
        token = torch.randn(N, D, dtype=torch.double)
        deter = core(deter, token.numpy(), weights)
        stepped, state = backbone.step(token, state)
        np.testing.assert_allclose(stepped.numpy(), deter, rtol=1e-9)
    assert np.abs(deter).max() > 0.1


@torch.no_grad()
def test_groups_hear_of_each_other_through_the_summary_alone():
    torch.manual_seed(0)
    backbone = BlockGRUBackbone(D).double()
    one = torch.randn(1, D, dtype=torch.double)
    other = one.clone()
    other[0, : D // BLOCKS] += 1
    token = torch.zeros(1, D, dtype=torch.double)

    def groups_that_differ():
        # The norm over all groups carries their common scale; it is not what is asked here.
        backbone.norm = torch.nn.Identity()
        told = [backbone.step(token, memory)[0].view(BLOCKS, -1) for memory in (one, other)]
        return (told[0] - told[1]).abs().amax(-1) > 0

    assert groups_that_differ().all()
    backbone.from_summary.weight.zero_()
    assert groups_that_differ().tolist() == [True] + [False] * (BLOCKS - 1)


@torch.no_grad()
def test_token_summary_and_group_weigh_at_first_what_they_weigh_there():
    torch.manual_seed(0)
    width = 512
    backbone = BlockGRUBackbone(width)
    memory = torch.randn(256, width)
    summary = backbone.from_summary(backbone.summary(memory))
    group = backbone.from_group(memory)
    # There one kernel of the scale 1 / fan reads a group's D / 8 numbers, as many units of the summary, and
    # twice as many of the token, all units after SiLU.
    unit = torch.nn.functional.silu(torch.randn(100_000)).square().mean().item()
    token = 1.0  # `input_rms`
    assert summary.square().mean().item() == pytest.approx(token / 2, rel=0.15)
    assert group.square().mean().item() == pytest.approx(token / (2 * unit), rel=0.05)
    gates = backbone.gates(memory)
    assert gates.square().mean().item() == pytest.approx(1 / BLOCKS, rel=0.05)


def test_a_width_without_blocks_of_one_size_is_refused(compose):
    with pytest.raises(ConfigError, match=r"backbone\.width=500: .* choose a multiple of 8"):
        make_backbone(compose("backbone=block_gru", "backbone.width=500"))


def test_the_reference_is_of_its_authors_size(compose):
    cfg = compose("exp=dmc_reference")
    backbone = make_backbone(cfg)
    narrow = sum(p.numel() for p in backbone.parameters())
    # From the memory, from the summary, of each group, gates; biases and norms.
    products = 512 * 64 + 64 * 512 + 512 * 64 + 512 * 192
    assert narrow == products + 64 + 512 + 3 * 512 + (64 + 512)
