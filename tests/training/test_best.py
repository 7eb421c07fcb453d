import numpy as np
import pytest
import torch
from torch import nn

from llmdreamer.errors import ConfigError
from llmdreamer.training.best import BestPolicy
from llmdreamer.training.evaluate import Evaluation

CPU = torch.device("cpu")


def agent(value: float) -> nn.Module:
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, value)
    return made


def scored(*returns: float) -> Evaluation:
    return Evaluation(np.array(returns), np.ones(len(returns), np.int64))


def kept(best: BestPolicy) -> float:
    target = agent(0.0)
    best.restore(target)
    return target.weight[0, 0].item()


def test_the_highest_mean_is_kept_and_of_equal_ones_the_latest(tmp_path):
    best = BestPolicy(tmp_path, CPU, goes_on=False)
    assert best.policy_step is None
    best.offer(agent(1.0), scored(10, 20), 100)
    best.offer(agent(2.0), scored(30, 10), 200)
    best.offer(agent(3.0), scored(20, 20), 300)
    best.offer(agent(4.0), scored(19, 20), 400)
    assert (kept(best), best.policy_step) == (3.0, 300)


def test_a_run_that_goes_on_keeps_what_was_best_and_a_new_one_forgets_it(tmp_path):
    BestPolicy(tmp_path, CPU, goes_on=False).offer(agent(1.0), scored(50), 100)
    again = BestPolicy(tmp_path, CPU, goes_on=True)
    again.offer(agent(2.0), scored(40), 200)
    assert kept(again) == 1.0
    new = BestPolicy(tmp_path, CPU, goes_on=False)
    assert new.policy_step is None
    new.offer(agent(2.0), scored(40), 200)
    assert kept(new) == 2.0


def test_a_damaged_file_is_not_loaded(tmp_path):
    best = BestPolicy(tmp_path, CPU, goes_on=False)
    best.offer(agent(1.0), scored(50), 100)
    (path,) = (tmp_path / "best").glob("*.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="no undamaged one"):
        best.restore(agent(0.0))
