"""The block GRU and its token projection, compared with NumPy code that follows danijar/dreamerv3."""

import math

import numpy as np
import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.block_gru import BLOCKS, BlockGRUBackbone
from llmdreamer.types import EnvSpec, IndexedLatent
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.tokens import TokenProjection

D, N, S, K = 64, 5, 3, 4


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-4) * weight


def block_linear(x, kernel, bias=0.0):
    parts = x.reshape(*x.shape[:-1], len(kernel), -1)
    return np.einsum("nki,kio->nko", parts, kernel).reshape(len(x), -1) + bias


def layer(x, weights, name):
    x = x @ weights[f"{name}.0.weight"].T + weights[f"{name}.0.bias"]
    return silu(rms_norm(x, weights[f"{name}.1.weight"]))


def core(deter, stoch, action, weights):
    """One step of danijar/dreamerv3's `RSSM._core`: each group gets its own copy of three layers' outputs."""
    x0 = layer(deter, weights, "summary")
    x1 = layer(stoch.reshape(N, -1), weights, "stoch")
    x2 = layer(action / np.maximum(1, np.abs(action)), weights, "action")
    copies = np.concatenate([x0, x2, x1], -1)[:, None].repeat(BLOCKS, 1)
    x = np.concatenate([deter.reshape(N, BLOCKS, -1), copies], -1).reshape(N, -1)
    # Below the kernel that reads a group are its columns of the dense layers.
    dense = np.concatenate([weights["from_summary.weight"], weights["join.weight"]], 1)
    per_group = dense.reshape(BLOCKS, D // BLOCKS, -1).transpose(0, 2, 1)
    kernel = np.concatenate([weights["from_block.weight"], per_group], 1)
    x = block_linear(x, kernel, weights["from_summary.bias"] + weights["join.bias"])
    x = silu(rms_norm(x, weights["norm.weight"]))
    x = block_linear(x, weights["gates.weight"], weights["gates.bias"])
    gates = np.split(x.reshape(N, BLOCKS, -1), 3, -1)
    reset, candidate, update = (gate.reshape(N, -1) for gate in gates)
    candidate = np.tanh(sigmoid(reset) * candidate)
    update = sigmoid(update - 1)
    return update * candidate + (1 - update) * deter


@torch.no_grad()
@pytest.mark.parametrize("imagined", [False, True])
def test_block_gru_step_matches_danijar_dreamerv3(imagined):
    torch.manual_seed(0)
    backbone = BlockGRUBackbone(D).double()
    tokens = TokenProjection((S, K), 2, D // BLOCKS, backbone).double()
    for weight in [*backbone.parameters(), *tokens.project.parameters()]:
        weight.add_(0.3 * torch.randn_like(weight))  # so that biases and scales are not 0 and 1
    tensors = backbone.state_dict() | tokens.project.state_dict()
    weights = {name: value.numpy() for name, value in tensors.items()}
    deter, cache = np.zeros((N, D)), backbone.initial_cache(N).double()
    for t in range(4):
        is_first = torch.arange(N) == t
        classes = torch.randint(K, (N, S))
        stoch = torch.nn.functional.one_hot(classes, K).double()
        action = 2 * torch.randn(N, 2, dtype=torch.double)
        if imagined:
            token = tokens.imagined(classes + K * torch.arange(S), action)
        else:
            # Where an episode begins, deter, z and action are zeros.
            token = tokens(stoch, action, is_first)
            cache = backbone.reset(cache, is_first)
            keep = ~is_first.numpy()
            deter = deter * keep[:, None]
            stoch, action = stoch * ~is_first[:, None, None], action * ~is_first[:, None]
        deter = core(deter, stoch.numpy(), action.numpy(), weights)
        hidden, cache = backbone.step(token, cache)
        np.testing.assert_allclose(hidden.numpy(), deter, rtol=1e-9)
    assert np.abs(deter).max() > 0.1


@torch.no_grad()
def test_block_gru_groups_interact_only_through_the_summary():
    torch.manual_seed(0)
    backbone = BlockGRUBackbone(D).double()
    cache = torch.randn(1, D, dtype=torch.double)
    changed = cache.clone()
    changed[0, : D // BLOCKS] += 1
    token = torch.zeros(1, D, dtype=torch.double)

    # The norm over all groups couples them by their common scale, which is not tested here.
    backbone.norm = torch.nn.Identity()

    def groups_that_differ():
        before, after = (backbone.step(token, x)[0].view(BLOCKS, -1) for x in (cache, changed))
        return (before - after).abs().amax(-1) > 0

    assert groups_that_differ().all()
    backbone.from_summary.weight.zero_()
    assert groups_that_differ().tolist() == [True] + [False] * (BLOCKS - 1)


def test_block_gru_weights_have_the_initial_scale_of_danijar_dreamerv3():
    torch.manual_seed(0)
    width = 512
    backbone = BlockGRUBackbone(width)
    tokens = TokenProjection((32, 4), 1, width // BLOCKS, backbone)
    # dynhid0 reads deter, and eight copies of the outputs of three layers, each an eighth as wide.
    std = 1 / math.sqrt(width + BLOCKS * 3 * width // BLOCKS)
    for weight in (
        backbone.from_block.weight,
        backbone.from_summary.weight,
        tokens.project.join.weight,
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert backbone.gates.weight.std().item() == pytest.approx(1 / math.sqrt(width), rel=0.03)


@torch.no_grad()
def test_block_gru_deter_is_not_normalized(compose):
    torch.manual_seed(0)
    agent = Agent(compose("exp=dmc_reference"), EnvSpec({"state": (5,)}, 1, False))
    world = agent.world_model
    index = torch.randint(4, (N, 32)) + 4 * torch.arange(32)
    latent = IndexedLatent(torch.zeros(N, 512), index)
    imagined, cache = world.transition(latent, torch.zeros(N, 1), world.backbone.initial_cache(N))
    assert torch.equal(imagined.deter, cache)
    assert cache.abs().max() < 1


def test_reference_networks_have_dreamerv3s_depths(compose):
    agent = Agent(compose("exp=dmc_reference"), EnvSpec({"state": (5,)}, 1, False))
    world = agent.world_model
    nets = (world.prior, world.posterior, world.reward, world.continues, agent.behavior.critic)
    layers = [sum(isinstance(part, torch.nn.Linear) for part in net.mlp) for net in nets]
    assert layers == [2 + 1, 1 + 1, 1 + 1, 1 + 1, 3 + 1]  # hidden layers and the output layer


def test_block_gru_width_that_blocks_do_not_divide_is_refused(compose):
    with pytest.raises(ConfigError, match=r"backbone\.width=500: .* choose a multiple of 8"):
        make_backbone(compose("backbone=block_gru", "backbone.width=500"))


def test_block_gru_has_dreamerv3s_number_of_weights(compose):
    backbone = make_backbone(compose("exp=dmc_reference"))
    weights = sum(p.numel() for p in backbone.parameters())
    # Summary, from summary, from block, gates; then biases and norms.
    products = 512 * 64 + 64 * 512 + 512 * 64 + 512 * 192
    assert weights == products + 64 + 512 + 3 * 512 + (64 + 512)
