"""The arithmetic of DreamerV3 as pure functions of tensors; nothing here holds a parameter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) * ln(1 + |x|), elementwise. Source: arXiv:2301.04104v2, eq. "symlog"."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`: sign(x) * (exp(|x|) - 1), elementwise."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def even_bins(count: int) -> Tensor:
    """Bin positions linspace(-20, 20), exactly antisymmetric: (count,), increasing.

    Raises:
        ValueError: if `count` is even, because zero must be a bin.
    """
    if count % 2 == 0:
        raise ValueError(f"bins={count}: must be odd, so that zero is one of them")
    half = torch.linspace(-20.0, 0.0, count // 2 + 1)
    return torch.cat([half, -half[:-1].flip(0)])


def symexp_bins(count: int) -> Tensor:
    """Bin positions symexp(linspace(-20, 20)), exactly antisymmetric: (count,), increasing.

    Raises:
        ValueError: if `count` is even, because zero must be a bin.
    """
    return symexp(even_bins(count))


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Mean of a categorical over `bins`, summed from the center outwards.

    Opposite bins are paired before they are added: their values reach 5e8, and a plain sum of a
    symmetric distribution would leave a rounding error far above the rewards it predicts.

    Args:
        logits: (..., bins).
        bins: (bins,), antisymmetric.

    Returns:
        (...) in the unit of the bins.
    """
    weighted = logits.softmax(-1) * bins
    middle = bins.shape[0] // 2
    lower, upper = weighted[..., :middle].flip(-1), weighted[..., middle + 1 :]
    return weighted[..., middle] + (lower + upper).sum(-1)


def two_hot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy against the two bins around `target`, weighted by nearness in raw space.

    Source: arXiv:2301.04104v2, "Critic learning", twohot. Targets beyond the outer bins are clamped.

    Args:
        logits: (..., bins).
        target: (...), in the unit of the bins; no gradient flows into it.
        bins: (bins,), increasing.

    Returns:
        (...) in nats.
    """
    return two_hot_losses(logits, target.unsqueeze(-1), bins).squeeze(-1)


def two_hot_losses(logits: Tensor, targets: Tensor, bins: Tensor) -> Tensor:
    """Compute `two_hot_loss` of each distribution against M targets, normalizing it once: (..., M)."""
    targets = targets.detach().clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, targets.contiguous(), right=True).clamp(1, bins.shape[0] - 1)
    below = above - 1
    weight = (targets - bins[below]) / (bins[above] - bins[below])
    chosen = logits.gather(-1, torch.cat([below, above], -1)) - logits.logsumexp(-1, keepdim=True)
    lower, upper = chosen.chunk(2, -1)
    return -((1 - weight) * lower + weight * upper)


def unimix(logits: Tensor, share: float) -> Tensor:
    """Log-probabilities of the categorical mixed with `share` of the uniform one: (..., K).

    Source: arXiv:2301.04104v2, "World model learning", 1% unimix.
    """
    if share == 0.0:
        return logits.log_softmax(-1)
    return torch.log((1 - share) * logits.softmax(-1) + share / logits.shape[-1])


def sample_class(log_probs: Tensor) -> Tensor:
    """A sample of a categorical by inverting its cumulative distribution: (..., K) -> (..., 1), int64.

    Several times faster than `multinomial` on a CPU, and the same distribution up to rounding.
    """
    return _draw(log_probs.detach().exp().cumsum(-1))


def sample_mixed(logits: Tensor, share: float) -> Tensor:
    """Sample like `sample_class(unimix(logits, share))`, at the same draw, without the logarithm."""
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    if share > 0.0:
        count = logits.shape[-1]
        uniform = torch.arange(1, count + 1, dtype=logits.dtype, device=logits.device)
        cumulative = torch.add(uniform * (share / count), cumulative, alpha=1 - share)
    return _draw(cumulative)


def _draw(cumulative: Tensor) -> Tensor:
    """Draw a class of each cumulative distribution (..., K) by one uniform number: (..., 1)."""
    # Scale by the total, which rounding leaves a little off 1, so that no draw exceeds it.
    draw = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    classes = torch.searchsorted(cumulative, draw, right=True)
    return classes.clamp_(max=cumulative.shape[-1] - 1)


def sample_one_hot(log_probs: Tensor) -> Tensor:
    """Return `sample_class` one-hot: (..., K)."""
    return _one_hot(sample_class(log_probs), log_probs)


def mode_one_hot(log_probs: Tensor) -> Tensor:
    """The most probable class, one-hot: (..., K)."""
    return _one_hot(log_probs.argmax(-1, keepdim=True), log_probs)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    """One-hot of `index` (..., 1) in the shape and type of `like`; `F.one_hot` gives 64-bit integers."""
    return torch.zeros_like(like).scatter_(-1, index, 1.0)


def ones_at(columns: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return zeros with ones at `columns` (..., S): (..., width)."""
    zeros = torch.zeros(*columns.shape[:-1], width, dtype=dtype, device=columns.device)
    return zeros.scatter_(-1, columns, 1.0)


def linear_at(columns: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(ones_at(columns, ...), weight)`: the sum of those columns of `weight`, without the zeros.

    With S ones among S * K numbers that is 1 / K of the additions. If `columns` holds fewer vectors than the
    weight has columns, transposing the weight costs more than this saves, and the dense product is used.

    Args:
        columns: (..., S), int64, distinct in each vector.
        weight: (out, width).

    Returns:
        (..., out)
    """
    if columns.shape[:-1].numel() < weight.shape[1]:
        return F.linear(ones_at(columns, weight.shape[1], weight.dtype), weight)
    out: Tensor = _LinearAt.apply(columns, weight)
    return out


class _LinearAt(torch.autograd.Function):
    """Forward looks columns up; backward sums the gradients of the vectors that used each column."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.width = weight.shape[1]
        rows = F.embedding_bag(columns.flatten(0, -2), weight.t().contiguous(), mode="sum")
        return rows.unflatten(0, columns.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (columns,) = ctx.saved_tensors
        # Sorted by column, the rows that a column's gradient is the sum of are neighbours.
        ordered, places = columns.flatten().int().sort(stable=True)
        every = torch.arange(ctx.width, dtype=torch.int32, device=columns.device)
        begin = torch.searchsorted(ordered, every)
        rows = places.div_(columns.shape[-1], rounding_mode="floor")
        pulls = F.embedding_bag(rows, gradient.flatten(0, -2).contiguous(), begin, mode="sum")
        return None, pulls.t()


def straight_through(sample: Tensor, log_probs: Tensor) -> Tensor:
    """The sample's value with the probabilities' gradient (arXiv:1308.3432): (..., K)."""
    probs = log_probs.exp()
    return sample + probs - probs.detach()


def categorical_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of S independent categoricals, summed over them.

    Args:
        left, right: (..., S, K) normalised log-probabilities.

    Returns:
        (...) in nats.
    """
    return (left.exp() * (left - right)).sum((-2, -1))


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of a categorical, (..., K) -> (...), in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


def balanced_kl(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """The dynamics and the representation loss: the same KL, each side's gradient stopped in turn.

    Source: arXiv:2301.04104v2, "World model learning". Below `free_nats` a loss is that constant, so it
    gives no gradient.

    Args:
        posterior, prior: (..., S, K) normalised log-probabilities.

    Returns:
        Both losses, (...), in nats: KL(sg(posterior) || prior), KL(posterior || sg(prior)).
    """
    dynamics = categorical_kl(posterior.detach(), prior)
    representation = categorical_kl(posterior, prior.detach())
    return dynamics.clamp(min=free_nats), representation.clamp(min=free_nats)


def lambda_return(
    reward: Tensor, value: Tensor, discount: Tensor, lambda_: float | Tensor
) -> Tensor:
    """TD(lambda) returns, bootstrapped from the last value.

    Source: DreamerV3, arXiv:2301.04104v2, "Critic learning".

    Args:
        reward: (B, H). `reward[:, t]` is received on entering state t + 1.
        value: (B, H + 1), in reward units, not two-hot bins.
        discount: (B, H). gamma * P(continue) of state t + 1; 0 where the episode ended.
        lambda_: in [0, 1]; 0 is one-step TD. A tensor (B, H) where it differs by step: 0 on entering
            a state after which the return is not known, such as a truncated episode's last.

    Returns:
        (B, H) returns of states 0..H-1.

    Raises:
        ValueError: if `value` is not one step longer than `reward`.
    """
    if value.shape[1] != reward.shape[1] + 1:
        raise ValueError(
            f"value has {value.shape[1]} steps for {reward.shape[1]} rewards: must be one more"
        )
    one_step = reward + discount * (1 - lambda_) * value[:, 1:]
    carried = discount * lambda_
    returns = [value[:, -1]]
    for t in reversed(range(reward.shape[1])):
        returns.append(one_step[:, t] + carried[:, t] * returns[-1])
    return torch.stack(returns[:0:-1], 1)
