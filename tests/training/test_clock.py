import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from llmdreamer.training.clock import Clock, count_flops, peak_memory


def test_clock_read_returns_stage_shares_since_the_last_read():
    clock = Clock()
    with clock.stage("sleep"):
        time.sleep(0.03)
    time.sleep(0.03)
    elapsed, shares = clock.read()
    assert elapsed >= 0.06 and 0.03 / elapsed <= shares["sleep"] < 1
    assert clock.read()[1] == {}


def test_nested_stage_is_subtracted_from_the_outer_one():
    clock = Clock()
    with clock.stage("outer"):
        time.sleep(0.01)
        for _ in range(2):
            with clock.stage("inner"):
                time.sleep(0.02)
    with clock.stage("next"):
        pass
    elapsed, shares = clock.read()
    assert shares["inner"] * elapsed >= 0.04 and shares["outer"] * elapsed >= 0.01
    assert sum(shares.values()) <= 1  # no second counts twice


def test_failed_stage_is_timed():
    clock = Clock()
    with pytest.raises(KeyError), clock.stage("broken"):
        raise KeyError
    assert "broken" in clock.read()[1]


def test_flops_of_matrix_product_and_gradients_are_two_per_term():
    left, right = (torch.ones(shape, requires_grad=True) for shape in ((3, 4), (4, 5)))
    product, flops = count_flops(lambda: torch.mm(left, right))
    assert product.sum().item() == 60 and flops == 2 * 3 * 4 * 5
    assert count_flops(product.sum().backward)[1] == 2 * flops


@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_attention_are_counted_in_every_kernel(masked):
    """torch's own counter does not count the attention kernel that it uses on a CPU."""
    query = torch.ones(2, 3, 8, 4, requires_grad=True)  # batch, heads, time, width
    mask = torch.ones(8, 8, dtype=torch.bool).tril() if masked else None
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            result, flops = count_flops(
                lambda: scaled_dot_product_attention(query, query, query, mask)
            )
        assert flops == 2 * (2 * 2 * 3 * 8 * 8 * 4), kernel
        assert count_flops(result.sum().backward)[1] >= 2 * flops


def test_peak_memory_includes_what_is_held():
    held = torch.ones(50_000_000, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) > held.numel()
