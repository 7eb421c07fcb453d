"""Compares the pure functions with values computed by hand or in plain NumPy."""

import math

import numpy as np
import pytest
import torch

from llmdreamer.nn import functional as fn

close = torch.testing.assert_close


def test_symlog_of_e_minus_1_is_1_with_either_sign():
    x = torch.tensor([math.e - 1, 0.0, 1 - math.e])
    close(fn.symlog(x), torch.tensor([1.0, 0.0, -1.0]))


def test_symexp_inverts_symlog():
    x = torch.tensor([-1e6, -3.0, -1e-4, 0.0, 0.5, 1e6])
    close(fn.symexp(fn.symlog(x)), x, rtol=1e-4, atol=1e-7)


def test_symexp_bins_are_antisymmetric_and_increasing():
    bins = fn.symexp_bins(255)
    assert bins.shape == (255,) and bins[127] == 0
    assert torch.equal(bins, -bins.flip(0))
    assert (bins.diff() > 0).all()
    assert bins[-1].item() == pytest.approx(math.exp(20) - 1, rel=1e-5)


def test_symexp_bins_even_count_raises_value_error():
    with pytest.raises(ValueError, match="bins=4: must be odd"):
        fn.symexp_bins(4)


def test_two_hot_mean_of_uniform_logits_is_exactly_zero():
    assert fn.two_hot_mean(torch.zeros(3, 255), fn.symexp_bins(255)).tolist() == [0.0, 0.0, 0.0]


def test_two_hot_mean_weighs_bins_by_probability():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]).log()
    bins = torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0])
    close(fn.two_hot_mean(logits, bins), torch.tensor(-1.0 - 0.2 + 0.25 + 1.5))


@pytest.mark.parametrize(
    ("target", "two_hot"),
    [
        (1.0, [0, 0, 0, 1, 0]),  # at a bin
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (-4.0, [1 / 3, 2 / 3, 0, 0, 0]),  # 3 below -1, 6 above -10
        (99.0, [0, 0, 0, 0, 1]),  # beyond the ends
        (-99.0, [1, 0, 0, 0, 0]),
    ],
)
def test_two_hot_loss_is_cross_entropy_with_the_two_nearest_bins(target, two_hot):
    logits = np.array([0.3, -1.0, 0.5, 2.0, 0.0], np.float32)
    log_probs = logits - np.log(np.exp(logits).sum())
    loss = fn.two_hot_losses(
        torch.tensor(logits), torch.tensor([target]), torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0])
    )
    assert loss.item() == pytest.approx(-(np.array(two_hot) * log_probs).sum(), rel=1e-5)


def test_two_hot_losses_of_several_targets_equal_separate_calls():
    logits = torch.randn(6, 2, 255, dtype=torch.float64)
    targets = 10 * torch.randn(6, 2, 3, dtype=torch.float64)
    bins = fn.symexp_bins(255).double()
    each = [fn.two_hot_losses(logits, targets[..., m : m + 1], bins) for m in range(3)]
    close(fn.two_hot_losses(logits, targets, bins), torch.cat(each, -1))


def test_unimix_gives_every_class_its_uniform_share():
    probs = fn.unimix(torch.tensor([1000.0, 0.0, 0.0, 0.0]), 0.2).exp()
    close(probs, torch.tensor([0.85, 0.05, 0.05, 0.05]))


def test_unimix_with_share_zero_is_log_softmax():
    close(fn.unimix(torch.tensor([1.0, 3.0]).log(), 0.0).exp(), torch.tensor([0.25, 0.75]))


def test_one_hot_samples_have_the_frequencies_of_the_distribution():
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3])
    samples = fn.sample_one_hot(probs.log().expand(20_000, 4))
    assert (samples.sum(-1) == 1).all() and (samples.amax(-1) == 1).all()
    close(samples.mean(0), probs, rtol=0, atol=0.015)  # four standard deviations
    assert samples[:, 1].sum() == 0


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_sample_mixed_equals_sampling_from_unimix_probabilities(share):
    logits = 3 * torch.randn(500, 4, 7, dtype=torch.float64)
    torch.manual_seed(0)
    samples = fn.sample_mixed(logits, share)
    torch.manual_seed(0)
    assert torch.equal(samples, fn.sample_class(fn.unimix(logits, share)))


def test_mode_is_the_most_probable_class():
    assert fn.mode_one_hot(torch.tensor([0.2, 0.5, 0.3]).log()).tolist() == [0, 1, 0]


def test_straight_through_has_value_of_sample_and_gradient_of_probabilities():
    log_probs = torch.tensor([0.25, 0.75]).log().requires_grad_()
    through = fn.straight_through(torch.tensor([1.0, 0.0]), log_probs)
    close(through.detach(), torch.tensor([1.0, 0.0]))
    (through * torch.tensor([4.0, 8.0])).sum().backward()
    # d exp(l) / dl = p.
    close(log_probs.grad, torch.tensor([1.0, 6.0]))


def test_categorical_kl_sums_over_the_categoricals():
    left = torch.tensor([[0.5, 0.5], [1.0 - 1e-7, 1e-7]]).log()
    right = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)
    assert fn.categorical_kl(left, right).item() == pytest.approx(expected, abs=1e-4)


def test_entropy_of_a_fair_coin_is_log_2():
    assert fn.categorical_entropy(torch.tensor([0.5, 0.5]).log()).item() == pytest.approx(
        math.log(2)
    )


def _kl_pair(free_nats):
    posterior = torch.tensor([[2.0, 0.0]], requires_grad=True)
    prior = torch.tensor([[0.0, 2.0]], requires_grad=True)
    # Each side prefers its class by 2 nats: KL = 2 * (sigmoid(2) - sigmoid(-2)) = 2 * tanh(1) = 1.523.
    return (
        posterior,
        prior,
        fn.balanced_kl(posterior.log_softmax(-1), prior.log_softmax(-1), free_nats),
    )


def test_each_balanced_kl_loss_has_gradient_on_one_side_only():
    posterior, prior, (dynamics, _) = _kl_pair(1.0)
    dynamics.backward()
    assert posterior.grad is None and prior.grad.abs().sum() > 0
    posterior, prior, (_, representation) = _kl_pair(1.0)
    representation.backward()
    assert prior.grad is None and posterior.grad.abs().sum() > 0
    assert dynamics.item() == representation.item() == pytest.approx(2 * math.tanh(1), rel=1e-5)


def test_balanced_kl_below_free_nats_has_no_gradient():
    posterior, prior, (dynamics, representation) = _kl_pair(2.0)
    assert dynamics.item() == representation.item() == 2.0
    (dynamics + representation).backward()
    assert posterior.grad.abs().sum() == 0 and prior.grad.abs().sum() == 0


def test_lambda_return_at_termination_does_not_bootstrap():
    discount = torch.tensor([[0.5, 0.0, 0.5]])  # the episode ends after the second step
    returns = fn.lambda_return(torch.ones(1, 3), torch.full((1, 4), 100.0), discount, 1.0)
    close(returns, torch.tensor([[1.5, 1.0, 51.0]]))


def test_lambda_return_with_lambda_0_is_one_step_td():
    reward, value = torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 10.0, 20.0]])
    close(
        fn.lambda_return(reward, value, torch.full((1, 2), 0.5), 0.0), torch.tensor([[6.0, 12.0]])
    )


def test_lambda_return_mixes_value_and_next_return():
    reward, value = torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 10.0, 20.0]])
    # 1 + 0.5 * (0.75 * 10 + 0.25 * 12)
    close(
        fn.lambda_return(reward, value, torch.full((1, 2), 0.5), 0.25), torch.tensor([[6.25, 12.0]])
    )


def test_lambda_return_accepts_a_lambda_per_step():
    reward, value = torch.zeros(1, 2), torch.tensor([[0.0, 10.0, 20.0]])
    returns = fn.lambda_return(reward, value, torch.ones(1, 2), torch.tensor([[0.0, 1.0]]))
    close(returns, torch.tensor([[10.0, 20.0]]))


def test_lambda_return_with_short_value_raises_value_error():
    with pytest.raises(ValueError, match="2 steps for 2 rewards: must be one more"):
        fn.lambda_return(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), 1.0)


# --- Sparse ones ------------------------------------------------------------------------


def test_ones_at_sets_the_given_columns():
    vectors = fn.ones_at(torch.tensor([[0, 3], [1, 2]]), 4, torch.float64)
    assert vectors.dtype == torch.float64
    assert vectors.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize("batch", [(3,), (5, 8)])  # fewer and more vectors than weight columns
def test_linear_at_equals_dense_product_and_gradient(batch):
    columns = torch.randint(3, (*batch, 4)) + torch.tensor([0, 3, 6, 9])
    weights = [torch.randn(5, 12, dtype=torch.float64).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        weights[1].copy_(weights[0])
    sparse = fn.linear_at(columns, weights[0])
    dense = fn.ones_at(columns, 12, torch.float64) @ weights[1].t()
    close(sparse, dense)
    gradient = torch.randn_like(dense)
    sparse.backward(gradient)
    dense.backward(gradient)
    close(weights[0].grad, weights[1].grad)


def test_linear_at_unused_column_gets_no_gradient():
    weight = torch.randn(2, 4, requires_grad=True)
    fn.linear_at(torch.tensor([[0, 3]] * 5), weight).backward(torch.ones(5, 2))
    assert weight.grad.tolist() == [[5, 0, 0, 5]] * 2


def test_linear_at_gradient_matches_finite_differences():
    columns = torch.randint(3, (20, 2)) + torch.tensor([0, 3])
    weight = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: fn.linear_at(columns, w), weight)


def test_mean_by_mask_splits_the_mean_and_is_nan_without_values():
    values = torch.tensor([[1.0, 2.0], [6.0, 3.0]])
    mask = torch.tensor([[True, False], [False, False]])
    inside, outside = fn.mean_by_mask(values, mask)
    assert (inside.item(), outside.item()) == pytest.approx((1.0, 11 / 3))
    inside, outside = fn.mean_by_mask(values, torch.zeros_like(mask))
    assert math.isnan(inside) and outside.item() == 3.0
