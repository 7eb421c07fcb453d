"""Non-finite losses and gradients: no weight changes, updates are counted, and the source is named."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from llmdreamer.agent.agent import Agent
from llmdreamer.behavior.normalize import ReturnNorm
from llmdreamer.training.non_finite import SkippedUpdates, find_non_finite, trace_source
from llmdreamer.training.optimizer import SKIPPED, AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch

torch.set_num_threads(1)

SMALL = (
    "backbone=gru",
    "algo.dense_units=16",
    "algo.horizon=3",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=8",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
)
RNG = torch.Generator().manual_seed(0)
DATA = torch.randn(20, 6, 3, generator=RNG)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def loss(self, data):
        return self.second(self.first(data).tanh()).square().sum()


def bad_loss(pair):
    return pair.loss(DATA[0]) * math.nan


def bad_gradient(pair):
    # The loss is 0, where the gradient of a square root is infinite.
    return pair.first.weight.sub(pair.first.weight.detach()).abs().sqrt().sum()


def too_large(pair):
    return pair.loss(DATA[0]) * 1e38 * 1e38


@pytest.fixture
def make(compose):
    def optimizer(module, *keys):
        settings = compose("algo.optimizer.warmup=0", *keys).algo.optimizer
        return AgentOptimizer(module, settings, 100)

    return optimizer


def full_state(module, optimizer):
    return copy.deepcopy([module.state_dict(), optimizer.inner.state_dict()])


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


ADAM = ("algo.optimizer.kind=adam", "algo.optimizer.agc=null", "algo.optimizer.clip=1")


@pytest.mark.parametrize("keys", [(), ADAM], ids=["laprop", "adam"])
@pytest.mark.parametrize("bad", [bad_loss, bad_gradient, too_large])
@pytest.mark.parametrize("good_before", [0, 3])
def test_skipped_update_leaves_no_trace(make, bad, good_before, keys):
    pair, reference = Pair(), Pair()
    optimizer, other = make(pair, *keys), make(reference, *keys)
    for data in DATA[:good_before]:
        assert optimizer.step(pair.loss(data))[SKIPPED] == 0
        other.step(reference.loss(data))
    before = copy.deepcopy(pair.state_dict())
    metrics = optimizer.step(bad(pair))
    assert metrics[SKIPPED] == 1
    assert same(before, pair.state_dict())
    for data in DATA[good_before:]:
        optimizer.step(pair.loss(data))
        other.step(reference.loss(data))
    assert same(full_state(pair, optimizer), full_state(reference, other))
    assert (optimizer.updates, other.updates) == (21, 20)  # a skipped update counts as one


def test_skipping_an_update_does_not_wait_for_the_device(make):
    """Fake tensors have no values, so reading one, as an `if` does, raises an error."""
    with FakeTensorMode():
        pair = Pair()
        optimizer, data = make(pair), torch.ones(6, 3)
        norm = ReturnNorm(return_norm_config())
        for _ in range(2):
            metrics = optimizer.step(pair.loss(data))
            norm.update(data)
        with pytest.raises(DataDependentOutputException):
            bool(metrics[SKIPPED])


def return_norm_config():
    from llmdreamer.config import ReturnNormConfig

    return ReturnNormConfig(decay=0.9, low=0.05, high=0.95, minimum_scale=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_return_scale_ignores_non_finite_returns(bad):
    norm = ReturnNorm(return_norm_config())
    norm.update(torch.linspace(0, 100, 101))
    before = norm.scale.item()
    norm.update(torch.full((4, 5), bad))
    assert norm.scale.item() == before == pytest.approx(0.1 * 90)
    norm.update(torch.linspace(0, 100, 101))
    assert norm.scale.item() == pytest.approx(0.19 * 90)


def test_skipped_updates_are_counted_in_total_and_in_a_row():
    skipped = SkippedUpdates()
    for flag in (0, 1, 1, 0, 1, 1, 1):
        skipped.add(torch.tensor(float(flag)))
    skipped.sync()
    assert (skipped.total, skipped.consecutive, skipped.unreported) == (5, 3, 5)
    resumed = SkippedUpdates()
    resumed.load_state_dict(skipped.state_dict())
    resumed.add(torch.tensor(1.0))
    resumed.sync()
    assert (resumed.total, resumed.consecutive, resumed.unreported) == (6, 4, 1)
    resumed.add(torch.tensor(0.0))
    resumed.sync()
    assert (resumed.total, resumed.consecutive) == (6, 0)


@pytest.fixture
def learner(compose):
    config = compose(*SMALL)
    torch.manual_seed(0)
    agent = Agent(config, EnvSpec({"state": (4,)}, 2, True))
    return Learner(agent, AgentOptimizer(agent, config.algo.optimizer, 100), config.algo)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(5)
    action = torch.nn.functional.one_hot(torch.randint(2, (4, 9), generator=rng), 2).float()
    no = torch.zeros(4, 9, dtype=torch.bool)
    seen = torch.randn(4, 9, 4, generator=rng)
    return SequenceBatch({"state": seen}, action, torch.ones(4, 9), no, no)


def test_nan_batch_changes_no_weight(learner, batch):
    weights = copy.deepcopy(learner.agent.state_dict())
    batch.reward[2, 3] = math.nan
    metrics = learner.update(batch)
    assert metrics[SKIPPED] == 1 and metrics["world_model/reward_loss"].isnan()
    assert same(weights, learner.agent.state_dict())
    batch.reward[2, 3] = 1.0
    assert learner.update(batch)[SKIPPED] == 0
    assert not same(weights, learner.agent.state_dict())
    state = [learner.agent.state_dict(), learner.optimizer.state_dict()]
    assert find_non_finite(state) is None


def source_of(learner, batch):
    return trace_source(learner.agent, batch, lambda: learner.loss(batch))


def test_trace_names_the_first_non_finite_module(learner, batch):
    agent = learner.agent
    assert source_of(learner, batch) == "a loss or a gradient (all module outputs are finite)"
    before = torch.get_rng_state()
    layers = {name: m for name, m in agent.named_modules() if isinstance(m, nn.Linear)}
    name = next(n for n in layers if n.startswith("behavior.actor"))
    with torch.no_grad():
        layers[name].weight.fill_(math.inf)
    assert source_of(learner, batch) == name
    earlier = next(n for n in layers if n.startswith("world_model.encoder"))
    with torch.no_grad():
        layers[earlier].weight.fill_(math.nan)
    assert source_of(learner, batch) == earlier
    batch.observations["state"][0, 0, 0] = math.inf
    assert source_of(learner, batch) == "the replayed observation 'state'"
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module._forward_hooks for module in agent.modules())


def test_non_finite_tensor_is_found_by_its_path():
    state = {"agent": {"a": torch.ones(2)}, "moments": [torch.ones(1), torch.tensor([math.nan])]}
    assert find_non_finite(state) == "moments.1"
    assert find_non_finite({"agent": state["agent"], "names": ["a"], "count": 3}) is None
