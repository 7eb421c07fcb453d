"""Two processes make the same update as one process with both batches."""

import pytest
import torch
import torch.multiprocessing as mp

from llmdreamer.agent.agent import Agent
from llmdreamer.behavior import policy
from llmdreamer.nn import layers as nets
from llmdreamer.nn.functional import mode_one_hot
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.utils import distributed
from llmdreamer.world_model import model

torch.set_num_threads(1)
SPEC = EnvSpec({"state": (4,)}, 2, True)
SMALL = [
    "backbone=gru",
    "algo.dense_units=16",
    "algo.horizon=3",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=null",  # from all time steps, so that none is sampled
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.recurrent_model.dense_units=16",
    "algo.return_norm.minimum_scale=0.001",  # so that the percentiles count
    "algo.return_norm.decay=0.5",
    "algo.optimizer.warmup=0",
]


def updates(cfg, batches):
    """Return an agent's weights after some updates.

    Latents and actions are modes, so that nothing depends on a sequence's position in its batch.
    """
    torch.manual_seed(0)
    agent = Agent(cfg, SPEC)
    torch.nn.init.normal_(agent.behavior.critic.mlp[-1].weight)  # so that returns differ
    learner = Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)
    for batch in batches:
        learner.update(batch)
    return agent.state_dict()


def half(batch, rank):
    """Return the sequences of even or of odd index."""

    def cut(value):
        return {k: cut(v) for k, v in value.items()} if isinstance(value, dict) else value[rank::2]

    parts = (batch.observations, batch.action, batch.reward, batch.is_first, batch.terminated)
    return SequenceBatch(*map(cut, parts))


def batch_of(seed):
    rng = torch.Generator().manual_seed(seed)
    shape = (8, 9)
    is_first = torch.rand(shape, generator=rng) < 0.1
    action = torch.nn.functional.one_hot(torch.randint(2, shape, generator=rng), 2)
    return SequenceBatch(
        {"state": torch.randn(*shape, 4, generator=rng)},
        action.float(),
        torch.randn(shape, generator=rng),
        is_first,
        torch.rand(shape, generator=rng) < 0.1,
    )


BATCHES = [batch_of(seed) for seed in range(3)]
# With this eps, rounding errors of tiny gradients change no weight.
EPS = "algo.optimizer.eps=1e-3"


def mode_class(logits, share):
    return logits.argmax(-1, keepdim=True)


def process(rank, cfg, folder):
    """Run one of two processes: save its collective results, and its agent after half of each batch."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    collected = {
        "rank": distributed.rank(),
        "size": distributed.size(),
        "largest": distributed.all_reduce_max(rank + 3),
        "all": (distributed.all_true(True), distributed.all_true(rank == 0)),
        "collected": distributed.gather_objects(rank),
        "of the first": distributed.broadcast_object(f"process {rank}"),
        "mean": distributed.mean(torch.tensor([1.0 + rank])).tolist(),
    }
    policy.sample_one_hot = model.sample_one_hot = mode_one_hot
    nets.sample_mixed = mode_class
    state = updates(cfg, [half(batch, rank) for batch in BATCHES])
    torch.save((collected, state), folder / f"results-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(compose, tmp_path_factory):
    """Results of two processes, shared by the tests, because starting the processes is slow."""
    folder = tmp_path_factory.mktemp("parallel")
    mp.spawn(process, (compose(*SMALL, EPS), folder), nprocs=2)
    return [torch.load(folder / f"results-{rank}.pt") for rank in (0, 1)]


def test_collectives_of_two_processes_return_both_values(results):
    for rank, (collected, _) in enumerate(results):
        assert collected == {
            "rank": rank,
            "size": 2,
            "largest": 4,
            "all": (True, False),
            "collected": [0, 1] if rank == 0 else [],
            "of the first": "process 0",
            "mean": [1.5],
        }


def test_collectives_of_one_process_return_its_own_value():
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    assert (
        distributed.all_reduce_max(7),
        distributed.gather_objects(7),
        distributed.broadcast_object(7),
    ) == (
        7,
        [7],
        7,
    )


def test_two_processes_make_the_update_of_the_whole_batch(compose, results, monkeypatch):
    (_, first), (_, second) = results
    for module in (policy, model):
        monkeypatch.setattr(module, "sample_one_hot", mode_one_hot)
    monkeypatch.setattr(nets, "sample_mixed", mode_class)
    cfg = compose(*SMALL, EPS)
    whole, initial = updates(cfg, BATCHES), updates(cfg, [])
    for name, value in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    moved = [name for name in whole if not torch.allclose(whole[name], initial[name], atol=1e-4)]
    assert len(moved) > 0.7 * len(whole)
    # One half alone makes another update.
    alone = updates(cfg, [half(batch, 0) for batch in BATCHES])
    assert max((alone[name] - whole[name]).abs().max() for name in whole) > 1e-3
