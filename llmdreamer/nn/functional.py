"""DreamerV3's distributions, losses and returns as pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) * ln(1 + |x|), elementwise. Source: arXiv:2301.04104v2, eq. "symlog"."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), elementwise: the inverse of `symlog`."""
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


def even_two_hot(values: Tensor, count: int, limit: float) -> Tensor:
    """Weights of the two nearest of `count` even bins from -limit to limit: (...) -> (..., count).

    Values beyond the outer bins are clamped. The mean of the bins under these weights is the value.
    """
    indices = torch.arange(count, dtype=values.dtype, device=values.device)
    position = (values.clamp(-limit, limit) + limit) * ((count - 1) / (2 * limit))
    return (1 - (position.unsqueeze(-1) - indices).abs()).clamp(min=0)


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


def two_hot_losses(logits: Tensor, targets: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy of each distribution against M two-hot targets.

    A target's weight is on the two bins around it, in proportion to its nearness in raw space. Targets
    beyond the outer bins are clamped. Source: arXiv:2301.04104v2, "Critic learning", twohot.

    Args:
        logits: (..., bins), normalized once for all targets.
        targets: (..., M), in the unit of the bins; no gradient flows into them.
        bins: (bins,), increasing.

    Returns:
        (..., M) in nats.
    """
    targets = targets.detach().clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, targets.contiguous(), right=True).clamp(1, bins.shape[0] - 1)
    below = above - 1
    weight = (targets - bins[below]) / (bins[above] - bins[below])
    chosen = logits.gather(-1, torch.cat([below, above], -1)) - logits.logsumexp(-1, keepdim=True)
    lower, upper = chosen.chunk(2, -1)
    return -((1 - weight) * lower + weight * upper)


def unimix(logits: Tensor, share: float) -> Tensor:
    """Log-probabilities of (1 - share) * softmax(logits) + share * uniform: (..., K).

    Source: arXiv:2301.04104v2, "World model learning", 1% unimix.
    """
    if share == 0.0:
        return logits.log_softmax(-1)
    return torch.log((1 - share) * logits.softmax(-1) + share / logits.shape[-1])


def sample_class(log_probs: Tensor) -> Tensor:
    """Sample categoricals by inverting their cumulative distributions: (..., K) -> (..., 1), int64.

    Several times faster than `torch.multinomial` on a CPU; the distribution is the same up to rounding.
    """
    return _draw(log_probs.detach().exp().cumsum(-1))


def sample_mixed(logits: Tensor, share: float) -> Tensor:
    """Sample as `sample_class(unimix(logits, share))` does, without computing logarithms.

    The same random numbers give the same classes.
    """
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    if share > 0.0:
        count = logits.shape[-1]
        uniform = torch.arange(1, count + 1, dtype=logits.dtype, device=logits.device)
        cumulative = torch.add(uniform * (share / count), cumulative, alpha=1 - share)
    return _draw(cumulative)


def _draw(cumulative: Tensor) -> Tensor:
    """Draw a class from each cumulative distribution (..., K), using one uniform number: (..., 1)."""
    # Scale by the total, which rounding leaves a little off 1, so that no draw exceeds it.
    draw = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    classes = torch.searchsorted(cumulative, draw, right=True)
    return classes.clamp_(max=cumulative.shape[-1] - 1)


def sample_one_hot(log_probs: Tensor) -> Tensor:
    """Sample categoricals as one-hot vectors: log-probabilities (..., K) -> (..., K)."""
    return _one_hot(sample_class(log_probs), log_probs)


def mode_one_hot(log_probs: Tensor) -> Tensor:
    """Return the most probable class as a one-hot vector: (..., K) -> (..., K)."""
    return _one_hot(log_probs.argmax(-1, keepdim=True), log_probs)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    """One-hot vectors of `index` (..., 1), with shape and dtype of `like`; `F.one_hot` returns int64."""
    return torch.zeros_like(like).scatter_(-1, index, 1.0)


def ones_at(columns: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return vectors of zeros with ones at `columns` (..., S): (..., width)."""
    zeros = torch.zeros(*columns.shape[:-1], width, dtype=dtype, device=columns.device)
    return zeros.scatter_(-1, columns, 1.0)


def linear_at(columns: Tensor, weight: Tensor) -> Tensor:
    """Compute `F.linear(ones_at(columns, ...), weight)` by summing those columns of `weight`.

    With S ones among S * K numbers this takes 1 / K of the additions. If `columns` holds fewer vectors than
    the weight has columns, transposing the weight costs more than that saves; the dense product is used.

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
    """Forward sums the selected columns; backward sums, for each column, the gradients of its vectors."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.width = weight.shape[1]
        sums = F.embedding_bag(columns.flatten(0, -2), weight.t().contiguous(), mode="sum")
        return sums.unflatten(0, columns.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (columns,) = ctx.saved_tensors
        # Sorting by column makes the vectors that selected the same column adjacent.
        sorted_columns, order = columns.flatten().int().sort(stable=True)
        all_columns = torch.arange(ctx.width, dtype=torch.int32, device=columns.device)
        begin = torch.searchsorted(sorted_columns, all_columns)
        vectors = order.div_(columns.shape[-1], rounding_mode="floor")
        vector_gradients = gradient.flatten(0, -2).contiguous()
        weight_gradient = F.embedding_bag(vectors, vector_gradients, begin, mode="sum")
        return None, weight_gradient.t()


def straight_through(sample: Tensor, log_probs: Tensor) -> Tensor:
    """Straight-through estimator (arXiv:1308.3432): the sample's value, the probabilities' gradient.

    Both are (..., K).
    """
    probs = log_probs.exp()
    return sample + probs - probs.detach()


def categorical_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of S independent categoricals, summed over them.

    Args:
        left, right: (..., S, K) normalized log-probabilities.

    Returns:
        (...) in nats.
    """
    return (left.exp() * (left - right)).sum((-2, -1))


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each categorical in nats: (..., K) -> (...)."""
    return -(log_probs.exp() * log_probs).sum(-1)


def balanced_kl(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """Dynamics and representation loss: the same KL, with the gradient of one side stopped in each.

    Source: arXiv:2301.04104v2, "World model learning". A loss below `free_nats` is replaced by that
    constant, so it has no gradient.

    Args:
        posterior, prior: (..., S, K) normalized log-probabilities.

    Returns:
        Both losses, (...), in nats: KL(sg(posterior) || prior), KL(posterior || sg(prior)).
    """
    dynamics = categorical_kl(posterior.detach(), prior)
    representation = categorical_kl(posterior, prior.detach())
    return dynamics.clamp(min=free_nats), representation.clamp(min=free_nats)


def mean_by_mask(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means of `values` where the bool `mask` of the same shape is true, and where it is false.

    A mean of no values is NaN. The device is not waited for, as it would be when indexing with the mask.
    """
    inside, count = torch.where(mask, values, 0.0).sum(), mask.sum()
    outside = torch.where(mask, 0.0, values).sum()
    return inside / count, outside / (mask.numel() - count)


def lambda_return(
    reward: Tensor, value: Tensor, discount: Tensor, lambda_: float | Tensor
) -> Tensor:
    """TD(lambda) returns, bootstrapped from the last value.

    Source: DreamerV3, arXiv:2301.04104v2, "Critic learning".

    Args:
        reward: (B, H). `reward[:, t]` is received on entering state t + 1.
        value: (B, H + 1), in reward units, not two-hot bins.
        discount: (B, H). gamma * P(continue) of state t + 1; 0 where the episode ended.
        lambda_: in [0, 1]; 0 is one-step TD. A tensor (B, H) sets it for each step: 0 on entering a state
            whose return is unknown, such as the last one of a truncated episode.

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
