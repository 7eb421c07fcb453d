"""MinLSTM satisfies llmdreamer's backbone laws; the actor objective equals numbers computed by hand."""

from types import SimpleNamespace

import pytest
import torch
from llmdreamer_example.minlstm import MinLSTM
from llmdreamer_example.signs import SignsBehavior

from llmdreamer.testing.backbone_laws import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_minlstm_satisfies_law(law):
    torch.manual_seed(0)
    law(MinLSTM(width=16, layers=2).eval())


def test_minlstm_hidden_state_is_weighted_mean_of_candidates():
    """With zero gate logits the hidden state is the mean of its previous value and the candidate."""
    model = MinLSTM(width=1, layers=1)
    torch.nn.init.zeros_(model.layers[0].gates.weight)
    model.layers[0].gates.bias.data = torch.tensor([0.0, 0.0, 4.0])
    _, cache = model.observe(torch.ones(1, 3, 1), torch.zeros(1, 3, dtype=torch.bool))
    assert cache.flatten().tolist() == [2.0, 3.0, 3.5]


@pytest.mark.parametrize(
    ("positive_weight", "weights"), [(0.5, [1, 1, -1, 0]), (1.0, [2, 2, 0, 0])]
)
def test_signs_objective_depends_on_sign_of_advantage(positive_weight, weights):
    objective = SignsBehavior.actor_objective(
        SimpleNamespace(algo=SimpleNamespace(options={"positive_weight": positive_weight})),
        torch.tensor([[1.0, 1.0, 0.5, 1.0]]),
        torch.tensor([[0.1, 100.0, -3.0, 0.0]]),
    )
    expected = torch.tensor([weights])
    torch.testing.assert_close(objective, expected.float())
