"""The laws of `llmdreamer.backbones.Backbone`, as tests for every implementation.

@pytest.mark.parametrize("law", LAWS)
def test_my_backbone_satisfies_law(law):
    law(make_my_backbone().eval())
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmdreamer.backbones import Backbone, Cache

B, T = 3, 12
LONG_EPISODE_TOKENS = 150
"""More tokens than the smallest size of GPT-2 has positions."""
IMAGINED_STEPS = 6
BFLOAT16_TOLERANCE = 0.02
"""Largest allowed difference under autocast, as a fraction of the largest output."""

LAST_TOKEN = torch.full((B, 1), T - 1)
# (sequence, time) of each `is_first`: in the middle, twice in a row, and at the last time step.
# Sequence 0 does not start with one.
RESETS = [(0, 5), (1, 0), (1, 3), (1, 4), (2, 0), (2, 11)]


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


def _assert_close_in_bfloat16(left: Tensor, right: Tensor) -> None:
    assert (left - right).abs().max() < BFLOAT16_TOLERANCE * right.abs().max()


def packed_sequences(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return sequences with several episodes each: tokens (B, T, D) and is_first (B, T)."""
    generator = torch.Generator().manual_seed(1)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    for sequence, t in RESETS:
        is_first[sequence, t] = True
    return torch.randn(B, T, backbone.width, generator=generator), is_first


def encode_episode(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Encode one episode alone, (T, D) -> (T, D)."""
    is_first = torch.zeros(1, len(tokens), dtype=torch.bool)
    return backbone.observe(tokens.unsqueeze(0), is_first)[0][0]


def _episode_start(is_first: Tensor, sequence: int, t: int) -> int:
    """Return the index of the first token of the episode at (sequence, t)."""
    return max([0, *[start for start in range(t + 1) if is_first[sequence, start]]])


def _episodes(is_first: Tensor) -> list[tuple[int, int, int]]:
    """Return (sequence, start, end) of each episode."""
    episodes = []
    for sequence in range(B):
        starts = sorted({0, *[t for t in range(T) if is_first[sequence, t]]})
        ends = [*starts[1:], T]
        episodes += [(sequence, start, end) for start, end in zip(starts, ends, strict=True)]
    return episodes


@torch.no_grad()
def packed_sequence_equals_separate_episodes(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    deter, _ = backbone.observe(tokens, is_first)
    assert deter.shape == tokens.shape
    for sequence, start, end in _episodes(is_first):
        alone = encode_episode(backbone, tokens[sequence, start:end])
        assert_close(deter[sequence, start:end], alone)


@torch.no_grad()
def given_tokens_stay_unchanged(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    given = tokens.clone()
    backbone.observe(tokens, is_first)
    cache = backbone.initial_cache(B)
    for t in range(3):
        _, cache = backbone.step(tokens[:, t], cache)
    assert torch.equal(tokens, given)


@torch.no_grad()
def observe_equals_step(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    deter, _ = backbone.observe(tokens, is_first)
    cache = backbone.initial_cache(B)
    for t in range(T):
        stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        assert_close(stepped, deter[:, t])


@torch.no_grad()
def step_after_select_equals_encoding_prefix(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    _, caches = backbone.observe(tokens, is_first)
    for steps in (None, IMAGINED_STEPS, IMAGINED_STEPS + 1):
        _check_imagined_steps(backbone, caches, steps=steps)


def _check_imagined_steps(
    backbone: Backbone,
    caches: Cache,
    check: Callable[[Tensor, Tensor], None] = assert_close,
    steps: int | None = None,
) -> None:
    """Compare steps from `caches` of the packed sequences with encoding prefix and steps in one pass."""
    tokens, is_first = packed_sequences(backbone)
    indices = torch.tensor([[0, 4, 5, 11], [2, 3, 4, 11], [1, 3, 10, 11]])
    cache = backbone.select(caches, indices, steps)
    imagined = torch.randn(indices.numel(), IMAGINED_STEPS, backbone.width)
    outputs = []
    for t in range(IMAGINED_STEPS):
        deter, cache = backbone.step(imagined[:, t], cache)
        outputs.append(deter)
    starts = [(sequence, int(t)) for sequence in range(B) for t in indices[sequence]]
    for stream, (sequence, t) in enumerate(starts):
        prefix = tokens[sequence, _episode_start(is_first, sequence, t) : t + 1]
        expected = encode_episode(backbone, torch.cat([prefix, imagined[stream]]))
        check(torch.stack(outputs, 1)[stream], expected[len(prefix) :])


@torch.no_grad()
def step_after_select_leaves_observed_caches_unchanged(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    _, caches = backbone.observe(tokens, is_first)
    token = torch.randn(B, backbone.width)
    for steps in (None, 2):
        first, _ = backbone.step(token, backbone.select(caches, LAST_TOKEN, steps))
        second, _ = backbone.step(token, backbone.select(caches, LAST_TOKEN, steps))
        assert torch.equal(first, second)


@torch.no_grad()
def reset_empties_masked_streams_only(backbone: Backbone) -> None:
    tokens, _ = packed_sequences(backbone)
    cache = backbone.initial_cache(B)
    for t in range(3):
        deter, cache = backbone.step(tokens[:, t], cache)
    cache = backbone.reset(cache, torch.tensor([False, True, False]))
    deter, _ = backbone.step(tokens[:, 3], cache)
    assert_close(deter[1], encode_episode(backbone, tokens[1, 3:4])[0])
    assert_close(deter[2], encode_episode(backbone, tokens[2, :4])[3])


@torch.no_grad()
def replaced_stream_continues_as_in_its_source(backbone: Backbone) -> None:
    tokens, _ = packed_sequences(backbone)
    mask = torch.tensor([False, True, False])
    for target_steps, source_steps in ((7, 3), (3, 7), (0, 2), (2, 0)):
        caches = []
        for steps in (target_steps, source_steps):
            cache = backbone.initial_cache(B)
            for t in range(steps):
                _, cache = backbone.step(tokens[:, t], cache)
            caches.append(cache)
        cache = backbone.replace(caches[0], caches[1], mask)
        for t in range(9, 12):
            deter, cache = backbone.step(tokens[:, t], cache)
            for stream, steps in enumerate((target_steps, source_steps, target_steps)):
                episode = torch.cat([tokens[stream, :steps], tokens[stream, 9 : t + 1]])
                assert_close(deter[stream], encode_episode(backbone, episode)[-1])


@torch.no_grad()
def cache_survives_dict_round_trip(backbone: Backbone) -> None:
    tokens, _ = packed_sequences(backbone)
    cache = backbone.initial_cache(B)
    for t in range(5):
        _, cache = backbone.step(tokens[:, t], cache)
    saved = {key: value.clone() for key, value in backbone.cache_to_dict(cache).items()}
    assert all(isinstance(value, Tensor) for value in saved.values())
    expected, _ = backbone.step(tokens[:, 5], cache)
    restored, _ = backbone.step(tokens[:, 5], backbone.cache_from_dict(saved))
    assert torch.equal(expected, restored)


def empty_cache_survives_dict_round_trip(backbone: Backbone) -> None:
    cache = backbone.cache_from_dict(backbone.cache_to_dict(backbone.initial_cache(2)))
    token = torch.randn(2, backbone.width)
    assert torch.equal(
        backbone.step(token, cache)[0], backbone.step(token, backbone.initial_cache(2))[0]
    )


@torch.no_grad()
def observe_equals_step_in_long_episode(backbone: Backbone) -> None:
    tokens = torch.randn(1, LONG_EPISODE_TOKENS, backbone.width)
    deter = encode_episode(backbone, tokens[0])
    cache = backbone.initial_cache(1)
    for t in range(LONG_EPISODE_TOKENS):
        stepped, cache = backbone.step(tokens[:, t], cache)
        assert_close(stepped[0], deter[t])


@torch.no_grad()
def autocast_step_is_close_to_observe(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        deter, caches = backbone.observe(tokens, is_first)
        tolerance = BFLOAT16_TOLERANCE * deter.abs().max()
        cache = backbone.initial_cache(B)
        for t in range(T):
            stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
            assert (stepped - deter[:, t]).abs().max() < tolerance
        selected = backbone.select(caches, LAST_TOKEN)
        token = torch.randn(B, backbone.width)
        left, right = backbone.step(token, cache)[0], backbone.step(token, selected)[0]
    assert (left - right).abs().max() < tolerance


@torch.no_grad()
def autocast_imagined_steps_are_close_to_encoding_prefix(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        _, caches = backbone.observe(tokens, is_first)
        for steps in (None, IMAGINED_STEPS):
            _check_imagined_steps(backbone, caches, _assert_close_in_bfloat16, steps)


@torch.no_grad()
def autocast_episodes_are_independent(backbone: Backbone) -> None:
    tokens, is_first = packed_sequences(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        deter, _ = backbone.observe(tokens, is_first)
        tolerance = BFLOAT16_TOLERANCE * deter.abs().max()
        for sequence, start, end in _episodes(is_first):
            alone = encode_episode(backbone, tokens[sequence, start:end])
            assert (deter[sequence, start:end] - alone).abs().max() < tolerance
        # No tolerance here: tokens before the episode at (1, 4) must not change it at all.
        other = tokens.clone()
        other[1, :4] = 9.0
        assert torch.equal(backbone.observe(other, is_first)[0][1, 4:], deter[1, 4:])


def gradient_reaches_own_episode_only(backbone: Backbone) -> None:
    caches = _backward_from_one_episode(backbone)
    # Imagined steps carry gradient only if the backbone is recurrent.
    selected = backbone.select(caches, LAST_TOKEN)
    tensors = backbone.cache_to_dict(selected).values()
    assert not any(tensor.requires_grad for tensor in tensors)
    _, cache = backbone.step(torch.randn(B, backbone.width), selected)
    tensors = backbone.cache_to_dict(cache).values()
    assert any(tensor.requires_grad for tensor in tensors) == backbone.recurrent


def autocast_gradients_are_close_to_float32(backbone: Backbone) -> None:
    def gradients() -> dict[str, Tensor]:
        backbone.zero_grad()
        _backward_from_one_episode(backbone)
        weights = backbone.named_parameters()
        return {name: weight.grad for name, weight in weights if weight.grad is not None}

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients()
    assert expected and rounded.keys() == expected.keys()
    largest = max(gradient.norm().item() for gradient in expected.values())
    for name, gradient in expected.items():
        # Some gradients are rounding errors around zero, such as that of a bias added to all keys.
        difference = (rounded[name] - gradient).norm().item()
        assert difference < 0.1 * gradient.norm().item() + 0.01 * largest, name


def _backward_from_one_episode(backbone: Backbone) -> Cache:
    """Backpropagate from the last episode of sequence 1, which starts at 4; return the observed caches."""
    tokens, is_first = packed_sequences(backbone)
    tokens.requires_grad_()
    deter, caches = backbone.observe(tokens, is_first)
    # Not a sum of squares, which is almost constant after a norm.
    weight = torch.randn(deter[1, 4:].shape, generator=torch.Generator().manual_seed(2))
    (deter[1, 4:].float() * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    reached = tokens.grad.abs().sum(-1) > 0
    assert reached[1, 4:].all() and reached.sum() == T - 4
    return caches


@torch.no_grad()
def stacked_step_caches_equal_observed_caches(backbone: Backbone) -> None:
    """For recurrent backbones; passes for others."""
    if not backbone.recurrent:
        return
    tokens, is_first = packed_sequences(backbone)
    cache, caches = backbone.initial_cache(B), []
    for t in range(T):
        _, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        caches.append(cache)
    _check_imagined_steps(backbone, backbone.stack(caches))


LAWS: list[Callable[[Backbone], None]] = [
    packed_sequence_equals_separate_episodes,
    given_tokens_stay_unchanged,
    observe_equals_step,
    step_after_select_equals_encoding_prefix,
    step_after_select_leaves_observed_caches_unchanged,
    reset_empties_masked_streams_only,
    replaced_stream_continues_as_in_its_source,
    cache_survives_dict_round_trip,
    empty_cache_survives_dict_round_trip,
    observe_equals_step_in_long_episode,
    autocast_step_is_close_to_observe,
    autocast_imagined_steps_are_close_to_encoding_prefix,
    autocast_episodes_are_independent,
    gradient_reaches_own_episode_only,
    autocast_gradients_are_close_to_float32,
    stacked_step_caches_equal_observed_caches,
]
