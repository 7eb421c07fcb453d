"""The laws of `llmdreamer.backbones.Backbone`, to be tested for every implementation, whoever's it is.

@pytest.mark.parametrize("law", LAWS)
def test_the_backbone_keeps_the_law(law):
    law(make_my_backbone().eval())
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmdreamer.backbones import Backbone

B, T = 3, 12
LONG = 150
"""Tokens of a long episode: more than the smallest size of GPT-2 has positions."""

LAST = torch.full((B, 1), T - 1)
# Episodes begin in the middle, twice in a row, at the last row, and, in row 0, not even at the start.
RESETS = [(0, 5), (1, 0), (1, 3), (1, 4), (2, 0), (2, 11)]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


def packed(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Three sequences with episodes that begin anywhere: tokens (B, T, D) and is_first (B, T)."""
    generator = torch.Generator().manual_seed(1)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    for row, t in RESETS:
        is_first[row, t] = True
    return torch.randn(B, T, backbone.width, generator=generator), is_first


def encode(backbone: Backbone, tokens: Tensor) -> Tensor:
    """One episode alone, (T, D) -> (T, D)."""
    none = torch.zeros(1, len(tokens), dtype=torch.bool)
    return backbone.observe(tokens.unsqueeze(0), none)[0][0]


def _start(is_first: Tensor, row: int, t: int) -> int:
    """The row that the episode of (row, t) begins at."""
    return max([0, *[s for s in range(t + 1) if is_first[row, s]]])


@torch.no_grad()
def a_packed_sequence_gives_what_each_episode_gives_alone(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)
    deter, _ = backbone.observe(tokens, is_first)
    assert deter.shape == tokens.shape
    for row in range(B):
        starts = sorted({0, *[t for t in range(T) if is_first[row, t]]})
        for start, end in zip(starts, [*starts[1:], T], strict=True):
            close(deter[row, start:end], encode(backbone, tokens[row, start:end]))


@torch.no_grad()
def observe_gives_what_step_gives_token_by_token(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)
    deter, _ = backbone.observe(tokens, is_first)
    cache = backbone.initial_cache(B)
    for t in range(T):
        stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        close(stepped, deter[:, t])


@torch.no_grad()
def steps_from_a_selected_state_give_what_encoding_its_prefix_anew_gives(
    backbone: Backbone,
) -> None:
    tokens, is_first = packed(backbone)
    _, caches = backbone.observe(tokens, is_first)
    for steps in (None, 6, 7):
        _dream_on(backbone, caches, steps=steps)


def _dream_on(
    backbone: Backbone,
    caches: object,
    agree: Callable[[Tensor, Tensor], None] = close,
    steps: int | None = None,
) -> None:
    """Steps from `caches`, of the packed sequences, against encoding all anew."""
    tokens, is_first = packed(backbone)
    indices = torch.tensor([[0, 4, 5, 11], [2, 3, 4, 11], [1, 3, 10, 11]])
    cache = backbone.select(caches, indices, steps)
    dreamt = torch.randn(indices.numel(), 6, backbone.width)
    deters = []
    for t in range(6):
        deter, cache = backbone.step(dreamt[:, t], cache)
        deters.append(deter)
    for n, (row, t) in enumerate((r, int(t)) for r in range(B) for t in indices[r]):
        prefix = tokens[row, _start(is_first, row, t) : t + 1]
        anew = encode(backbone, torch.cat([prefix, dreamt[n]]))
        agree(torch.stack(deters, 1)[n], anew[len(prefix) :])


@torch.no_grad()
def selecting_leaves_the_observed_states_as_they_were(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)
    _, caches = backbone.observe(tokens, is_first)
    token = torch.randn(B, backbone.width)
    for steps in (None, 2):
        first, _ = backbone.step(token, backbone.select(caches, LAST, steps))
        second, _ = backbone.step(token, backbone.select(caches, LAST, steps))
        assert torch.equal(first, second)


@torch.no_grad()
def a_reset_empties_the_masked_streams_only(backbone: Backbone) -> None:
    tokens, _ = packed(backbone)
    cache = backbone.initial_cache(B)
    for t in range(3):
        deter, cache = backbone.step(tokens[:, t], cache)
    cache = backbone.reset(cache, torch.tensor([False, True, False]))
    deter, _ = backbone.step(tokens[:, 3], cache)
    close(deter[1], encode(backbone, tokens[1, 3:4])[0])
    close(deter[2], encode(backbone, tokens[2, :4])[3])


@torch.no_grad()
def a_replaced_stream_goes_on_as_it_would_have_where_it_is_from(backbone: Backbone) -> None:
    tokens, _ = packed(backbone)
    mask = torch.tensor([False, True, False])
    for here, there in ((7, 3), (3, 7), (0, 2), (2, 0)):
        caches = []
        for steps in (here, there):
            cache = backbone.initial_cache(B)
            for t in range(steps):
                _, cache = backbone.step(tokens[:, t], cache)
            caches.append(cache)
        cache = backbone.replace(caches[0], caches[1], mask)
        for t in range(9, 12):
            deter, cache = backbone.step(tokens[:, t], cache)
            for row, steps in enumerate((here, there, here)):
                lived = torch.cat([tokens[row, :steps], tokens[row, 9 : t + 1]])
                close(deter[row], encode(backbone, lived)[-1])


@torch.no_grad()
def a_state_survives_being_written_down(backbone: Backbone) -> None:
    tokens, _ = packed(backbone)
    cache = backbone.initial_cache(B)
    for t in range(5):
        _, cache = backbone.step(tokens[:, t], cache)
    saved = {key: value.clone() for key, value in backbone.cache_to_dict(cache).items()}
    assert all(isinstance(value, Tensor) for value in saved.values())
    going_on, _ = backbone.step(tokens[:, 5], cache)
    resumed, _ = backbone.step(tokens[:, 5], backbone.cache_from_dict(saved))
    assert torch.equal(going_on, resumed)


def an_empty_memory_survives_being_written_down(backbone: Backbone) -> None:
    cache = backbone.cache_from_dict(backbone.cache_to_dict(backbone.initial_cache(2)))
    token = torch.randn(2, backbone.width)
    assert torch.equal(
        backbone.step(token, cache)[0], backbone.step(token, backbone.initial_cache(2))[0]
    )


@torch.no_grad()
def a_long_episode_is_acted_in_as_it_is_trained_on(backbone: Backbone) -> None:
    tokens = torch.randn(1, LONG, backbone.width)
    deter = encode(backbone, tokens[0])
    cache = backbone.initial_cache(1)
    for t in range(LONG):
        stepped, cache = backbone.step(tokens[:, t], cache)
        close(stepped[0], deter[t])


@torch.no_grad()
def under_autocast_acting_stays_near_training(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        deter, caches = backbone.observe(tokens, is_first)
        cache = backbone.initial_cache(B)
        for t in range(T):
            stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
            assert (stepped - deter[:, t]).abs().max() < 0.02 * deter.abs().max()
        selected = backbone.select(caches, LAST)
        token = torch.randn(B, backbone.width)
        left, right = backbone.step(token, cache)[0], backbone.step(token, selected)[0]
    assert (left - right).abs().max() < 0.02 * deter.abs().max()


@torch.no_grad()
def under_autocast_dreams_stay_near_encoding_anew(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)

    def near(left: Tensor, right: Tensor) -> None:
        assert (left - right).abs().max() < 0.02 * right.abs().max()

    with torch.autocast("cpu", torch.bfloat16):
        _, caches = backbone.observe(tokens, is_first)
        for steps in (None, 6):
            _dream_on(backbone, caches, near, steps)


@torch.no_grad()
def under_autocast_episodes_stay_apart(backbone: Backbone) -> None:
    tokens, is_first = packed(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        deter, _ = backbone.observe(tokens, is_first)
        for row in range(B):
            starts = sorted({0, *[t for t in range(T) if is_first[row, t]]})
            for start, end in zip(starts, [*starts[1:], T], strict=True):
                alone = encode(backbone, tokens[row, start:end])
                assert (deter[row, start:end] - alone).abs().max() < 0.02 * deter.abs().max()
        # Rounding is no excuse here: what was before row 1's episode at 4 may be anything.
        other = tokens.clone()
        other[1, :4] = 9.0
        assert torch.equal(backbone.observe(other, is_first)[0][1, 4:], deter[1, 4:])


def a_gradient_reaches_every_token_and_none_from_another_episode(backbone: Backbone) -> None:
    caches = _learn_from_an_episode(backbone)
    # What is dreamt on from there has a gradient only if rows may be observed by such steps.
    selected = backbone.select(caches, LAST)
    assert not any(part.requires_grad for part in backbone.cache_to_dict(selected).values())
    _, cache = backbone.step(torch.randn(B, backbone.width), selected)
    parts = backbone.cache_to_dict(cache).values()
    assert any(part.requires_grad for part in parts) == backbone.recurrent


def under_autocast_gradients_are_near_those_of_full_precision(backbone: Backbone) -> None:
    def gradients() -> dict[str, Tensor]:
        backbone.zero_grad()
        _learn_from_an_episode(backbone)
        weights = backbone.named_parameters()
        return {name: weight.grad for name, weight in weights if weight.grad is not None}

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients()
    assert plain and rounded.keys() == plain.keys()
    largest = max(gradient.norm().item() for gradient in plain.values())
    for name, gradient in plain.items():
        # Some are zero but for rounding, as that of a bias that attention adds to all keys alike.
        far = (rounded[name] - gradient).norm().item()
        assert far < 0.1 * gradient.norm().item() + 0.01 * largest, name


def _learn_from_an_episode(backbone: Backbone) -> object:
    """One backward pass from row 1's third episode, which begins at 4; the caches observed."""
    tokens, is_first = packed(backbone)
    tokens.requires_grad_()
    deter, caches = backbone.observe(tokens, is_first)
    # No sum of squares: behind a norm that is as good as a constant.
    weight = torch.randn(deter[1, 4:].shape, generator=torch.Generator().manual_seed(2))
    (deter[1, 4:].float() * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    reached = tokens.grad.abs().sum(-1) > 0
    assert reached[1, 4:].all() and reached.sum() == T - 4
    return caches


@torch.no_grad()
def stacked_steps_are_what_observe_leaves(backbone: Backbone) -> None:
    """Of a recurrent backbone; nothing is asked of others."""
    if not backbone.recurrent:
        return
    tokens, is_first = packed(backbone)
    cache, caches = backbone.initial_cache(B), []
    for t in range(T):
        _, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        caches.append(cache)
    _dream_on(backbone, backbone.stack(caches))


LAWS: list[Callable[[Backbone], None]] = [
    a_packed_sequence_gives_what_each_episode_gives_alone,
    observe_gives_what_step_gives_token_by_token,
    steps_from_a_selected_state_give_what_encoding_its_prefix_anew_gives,
    selecting_leaves_the_observed_states_as_they_were,
    a_reset_empties_the_masked_streams_only,
    a_replaced_stream_goes_on_as_it_would_have_where_it_is_from,
    a_state_survives_being_written_down,
    an_empty_memory_survives_being_written_down,
    a_long_episode_is_acted_in_as_it_is_trained_on,
    under_autocast_acting_stays_near_training,
    under_autocast_dreams_stay_near_encoding_anew,
    under_autocast_episodes_stay_apart,
    a_gradient_reaches_every_token_and_none_from_another_episode,
    under_autocast_gradients_are_near_those_of_full_precision,
    stacked_steps_are_what_observe_leaves,
]
