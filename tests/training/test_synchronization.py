"""No step of an update reads a value from the device: the CPU would wait for it.

Tensors on the meta device have no values, so reading one, as `int(x)`, `if x` or a boolean index does, raises
an error.
"""

from contextlib import nullcontext

import pytest
import torch
from tiny_run import TINY
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from llmdreamer.agent.agent import Agent
from llmdreamer.training.optimizer import SKIPPED, AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch

META = torch.device("meta")
VECTOR = EnvSpec({"state": (4,)}, 2, True)
TEXT = EnvSpec({"state": (4,), "mission": (12,)}, 3, True, texts=("mission",))
IMAGE = EnvSpec({"image": (32, 32, 3)}, 2, False)
IN_SEQUENCE = "algo.text_keys.sequence=[mission]"
WINDOW = (
    *("backbone=hf", "backbone.model_type=opt"),
    "backbone.config={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,ffn_dim:16}",
)
CASES = {
    "gpt2": (VECTOR, ["backbone=gpt2"]),
    "lora": (VECTOR, ["backbone=gpt2", "peft=true", "lora.dropout=0.1"]),
    "window": (VECTOR, WINDOW),
    "mamba": (VECTOR, ["backbone=mamba"]),
    "mamba2": (VECTOR, ["backbone=mamba2"]),
    "coupled": (VECTOR, ["backbone=block_gru", "posterior=coupled"]),
    "images": (
        IMAGE,
        ["backbone=gru", "algo.mlp_keys.encoder=[]", "algo.cnn_keys.encoder=[image]"],
    ),
    "text": (TEXT, ["backbone=gru", "algo.text_keys.encoder=[mission]"]),
    "text in the sequence": (TEXT, ["backbone=gpt2", IN_SEQUENCE]),
    "text in windows": (TEXT, [*WINDOW, IN_SEQUENCE]),
    "text, coupled": (TEXT, ["backbone=gru", "posterior=coupled", IN_SEQUENCE]),
}


def batch_of(spec, sequences=4, steps=9):
    generator = torch.Generator().manual_seed(5)
    observations = {}
    for key, shape in spec.observations.items():
        kind = torch.float32 if spec.kind(key) == "vector" else torch.uint8
        size = (sequences, steps, *shape)
        observations[key] = torch.randint(97, 120, size, generator=generator).to(kind)
    is_first = torch.rand(sequences, steps, generator=generator) < 0.2
    none = torch.zeros(sequences, steps)
    action = torch.zeros(sequences, steps, spec.action_size)
    return SequenceBatch(observations, action, none, is_first, none.bool())


@pytest.mark.parametrize("case", CASES)
def test_update_reads_no_value_from_the_device(compose, monkeypatch, case):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    spec, overrides = CASES[case]
    config = compose(*TINY, *overrides)
    agent = Agent(config, spec).to(META)
    learner = Learner(agent, AgentOptimizer(agent, config.algo.optimizer, 100), config.algo)
    batch = batch_of(spec).to(META, but=spec.texts)
    for _ in range(2):  # the first update makes the moments
        metrics = learner.update(batch)
    with pytest.raises(RuntimeError, match="meta"):
        bool(metrics[SKIPPED])


def test_adam_reads_no_value_from_the_device(compose):
    keys = ("kind=adam", "agc=null", "clip=1", "behavior_clip=1")
    config = compose(*(f"algo.optimizer.{key}" for key in keys)).algo.optimizer
    with FakeTensorMode():
        network = nn.Linear(3, 2)
        optimizer = AgentOptimizer(network, config, 100)
        for _ in range(2):
            metrics = optimizer.step(network(torch.ones(4, 3)).square().sum())
        with pytest.raises(DataDependentOutputException):
            bool(metrics[SKIPPED])
    counters = [state["step"] for state in optimizer.inner.state.values()]
    assert counters and all(step.device == network.weight.device for step in counters)


def test_batch_copied_from_the_cpu_keeps_the_starts_of_its_episodes_there():
    batch = batch_of(VECTOR)
    copied = batch.to(META)
    assert copied.is_first.device == META and copied.planned_is_first is batch.is_first
    assert copied.to(META).planned_is_first is batch.is_first
