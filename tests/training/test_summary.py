"""The lines at a run's start and end."""

import numpy as np
import pytest
import torch

from llmdreamer.evaluation.episodes import Evaluation
from llmdreamer.training.summary import BestPolicyResult, fell_behind, opening, summary


def evaluated(*returns: float) -> Evaluation:
    return Evaluation(np.array(returns), np.array(returns, np.int64))


LOST = evaluated(239, 242, 236, 240)
KEPT = evaluated(500, 500, 500, 500)


@pytest.mark.parametrize(
    ("last", "best", "behind"),
    [
        (LOST, KEPT, True),
        (KEPT, KEPT, False),
        (evaluated(490, 480, 500, 485), KEPT, False),  # clearly lower, but not by a fifth
        (evaluated(100, 500, 200, 500), KEPT, False),  # lower by a third, but by chance
        (evaluated(-900, -910, -905), evaluated(-120, -130, -140), True),
    ],
)
def test_a_last_policy_falls_behind_beyond_chance_and_by_a_fifth(last, best, behind):
    assert fell_behind(last, best) is behind


@pytest.mark.parametrize(("last", "warned"), [(LOST, True), (KEPT, False)])
def test_the_summary_names_the_best_policy_if_the_last_is_worse(compose, tmp_path, last, warned):
    best = BestPolicyResult(KEPT, 1500)
    text = summary(compose(), tmp_path, last, best, "step 4500", "mlflow ui")
    assert ("commands take --best" in text) is warned
    assert "best policy        500.0" in text and "env step 1500" in text


def test_the_opening_names_arm_parameters_device_and_budget(compose, tmp_path):
    counts = {"parameters/total": 1_234_567.0, "parameters/trainable": 234_567.0}
    text = opening(compose("peft=true"), tmp_path, counts, torch.device("cpu"), 2000)
    assert "gpt2, size XS, on CartPole-v1" in text
    assert "1.23M, of which 0.23M are trained" in text
    assert f"cpu, threads={torch.get_num_threads()}, fp32" in text
    assert "4500 policy steps (500 of them random), 2000 updates" in text
    assert str(tmp_path) in text
