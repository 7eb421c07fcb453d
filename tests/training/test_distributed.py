"""Two processes make the update that one would make of both batches."""

from dataclasses import fields

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
    "algo.imag_starts=null",  # from all rows: none is drawn
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.recurrent_model.dense_units=16",
    "algo.return_norm.minimum_scale=0.001",  # so that the percentiles count
    "algo.return_norm.decay=0.5",
    "algo.optimizer.warmup=0",
]


def updates(cfg, batches):
    """The agent after some updates. Latents and actions are modes: what is drawn cannot tell a row's
    place in its batch, so two halves see what the whole does."""
    torch.manual_seed(0)
    agent = Agent(cfg, SPEC)
    torch.nn.init.normal_(agent.behavior.critic.mlp[-1].weight)  # returns worth a percentile
    learner = Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)
    for batch in batches:
        learner.update(batch)
    return agent.state_dict()


def half(batch, rank):
    """Sequences of even or odd place."""

    def cut(value):
        return {k: cut(v) for k, v in value.items()} if isinstance(value, dict) else value[rank::2]

    return SequenceBatch(*[cut(getattr(batch, field.name)) for field in fields(batch)])


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
# Rounding errors, which LaProp would take for gradients, move nothing.
EPS = "algo.optimizer.eps=1e-3"


def mode_class(logits, share):
    return logits.argmax(-1, keepdim=True)


def process(rank, cfg, folder):
    """One of two: what it hears, and the agent that half of each batch makes of it."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    heard = {
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
    torch.save((heard, state), folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(compose, tmp_path_factory):
    """By two processes, once for both tests: importing torch takes them most of their time."""
    folder = tmp_path_factory.mktemp("parallel")
    mp.spawn(process, (compose(*SMALL, EPS), folder), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


def test_processes_hear_what_they_tell_each_other(found):
    for rank, (heard, _) in enumerate(found):
        assert heard == {
            "rank": rank,
            "size": 2,
            "largest": 4,
            "all": (True, False),
            "collected": [0, 1] if rank == 0 else [],
            "of the first": "process 0",
            "mean": [1.5],
        }


def test_one_process_alone_hears_what_it_says():
    assert (distributed.rank(), distributed.size(), distributed.is_first()) == (0, 1, True)
    assert (
        distributed.all_reduce_max(7),
        distributed.gather_objects(7),
        distributed.broadcast_object(7),
    ) == (
        7,
        [7],
        7,
    )


def test_two_halves_of_a_batch_make_the_update_that_the_whole_makes(compose, found, monkeypatch):
    (_, first), (_, second) = found
    for module in (policy, model):
        monkeypatch.setattr(module, "sample_one_hot", mode_one_hot)
    monkeypatch.setattr(nets, "sample_mixed", mode_class)
    cfg = compose(*SMALL, EPS)
    whole, begun = updates(cfg, BATCHES), updates(cfg, [])
    for name, value in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    moved = [name for name in whole if not torch.allclose(whole[name], begun[name], atol=1e-4)]
    assert len(moved) > 0.7 * len(whole)
    # One half alone makes another.
    alone = updates(cfg, [half(batch, 0) for batch in BATCHES])
    assert max((alone[name] - whole[name]).abs().max() for name in whole) > 1e-3
