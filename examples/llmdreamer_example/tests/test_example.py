"""The laws that llmdreamer tests its own backbones for, and the variant's objective by hand."""

from types import SimpleNamespace

import pytest
import torch
from llmdreamer_example.minlstm import MinLSTM
from llmdreamer_example.signs import SignsBehavior

from llmdreamer.testing.backbone_laws import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_minlstm_keeps_the_law_that(law):
    torch.manual_seed(0)
    law(MinLSTM(width=16, layers=2).eval())


def test_a_memory_is_a_weighted_mean_of_candidates():
    """Gates of zero halve what was there: 3, then (3 + 3) / 2 of itself, whatever the tokens."""
    model = MinLSTM(width=1, layers=1)
    torch.nn.init.zeros_(model.layers[0].gates.weight)
    model.layers[0].gates.bias.data = torch.tensor([0.0, 0.0, 4.0])
    _, cache = model.observe(torch.ones(1, 3, 1), torch.zeros(1, 3, dtype=torch.bool))
    assert cache.flatten().tolist() == [2.0, 3.0, 3.5]


@pytest.mark.parametrize(("good", "weights"), [(0.5, [1, 1, -1, 0]), (1.0, [2, 2, 0, 0])])
def test_advantages_count_by_their_sign(good, weights):
    objective = SignsBehavior.actor_objective(
        SimpleNamespace(algo=SimpleNamespace(options={"good": good})),
        torch.tensor([[1.0, 1.0, 0.5, 1.0]]),
        torch.tensor([[0.1, 100.0, -3.0, 0.0]]),
    )
    expected = torch.tensor([weights])
    torch.testing.assert_close(objective, expected.float())
