"""`compile=true`: the same update in whole graphs, compiled once."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from tiny_run import TINY, differing_paths, metric_records, saved_trainer
from torch._dynamo.utils import counters

from llmdreamer.agent.agent import Agent
from llmdreamer.backbones import attention
from llmdreamer.backbones.shared_prefix import SharedPrefixCache
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.training.compile import (
    check_compiler,
    compile_agent,
    compile_errors,
    compiler,
    uncompiled,
)
from llmdreamer.training.loop import train
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)

needs_compiler = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason=f"no C++ compiler ({compiler()})"
)
GPT2 = [
    *("backbone=hf", "backbone.model_type=gpt2"),
    "backbone.config={n_embd:16,n_layer:1,n_head:2,n_positions:16}",
]
"""One layer, because compilation takes most of these tests' time."""
SMALL = ["algo.mlp_layers=1", "algo.horizon=2", "algo.world_model.hf_model.seq_len=4"]
"""Each layer and each imagined step adds kernels, and each kernel takes a second to compile."""
FAMILIES = {  # overrides and number of graphs
    "lora": (["backbone=gpt2", "peft=true"], 4),
    "coupled": (["backbone=gru", "posterior=coupled", "algo.critic.action_value_loss_weight=1"], 4),
    "reference": (["backbone=block_gru", "backbone.width=16", "posterior=coupled"], 4),
    "mamba2": (["backbone=mamba2"], 3),
    "window": (
        [
            *("backbone=hf", "backbone.model_type=opt"),
            "backbone.config={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,ffn_dim:16}",
        ],
        2,
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests have compiled and counted."""
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def traced(monkeypatch):
    """Trace the same graphs, but run them by torch's own kernels: seconds instead of a minute."""
    full_compile = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda f, *, fullgraph, dynamic, options: full_compile(
            f, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager"
        ),
    )


@pytest.fixture
def learner(compose):
    def make(*overrides):
        cfg = compose(*TINY, "compile=true", *overrides)
        torch.manual_seed(0)
        agent = Agent(cfg, EnvSpec({"state": (4,)}, 2, True))
        compile_agent(agent)
        return Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)

    return make


def batch(seed):
    rng = torch.Generator().manual_seed(seed)
    action = torch.nn.functional.one_hot(torch.randint(2, (4, 9), generator=rng), 2).float()
    is_first = torch.rand(4, 9, generator=rng) < 0.2
    reward = torch.randn(4, 9, generator=rng)
    terminated = torch.zeros(4, 9, dtype=torch.bool)
    terminated[:, :-1] = is_first[:, 1:]
    return SequenceBatch(
        {"state": torch.randn(4, 9, 4, generator=rng)}, action, reward, is_first, terminated
    )


def losses_and_gradients(learner, data):
    torch.manual_seed(1)
    loss, metrics = learner.loss(data)
    params = {name: p for name, p in learner.agent.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    gradients = dict(zip(params, values, strict=True))
    return metrics | {"loss": loss.detach()}, {k: g for k, g in gradients.items() if g is not None}


def check_the_same(learner, data, tolerance=1e-4):
    """Compare compiled and plain losses and gradients: each tensor, relative to its norm."""
    norm = learner.agent.behavior.return_norm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with uncompiled(True):
        plain = losses_and_gradients(learner, data)
    norm.load_state_dict(before)
    compiled = losses_and_gradients(learner, data)
    for one, other in zip(plain, compiled, strict=True):
        assert one.keys() == other.keys()
        far = {k: float((other[k] - one[k]).norm() / (one[k].norm() + 1e-4)) for k in one}
        assert {k: share for k, share in far.items() if not share < tolerance} == {}


def check_whole(learner, graphs):
    """Check that this many graphs give the plain results and serve all further updates."""
    check_the_same(learner, batch(5))
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            learner.update(batch(seed))
    assert counters["stats"]["unique_graphs"] == graphs


@needs_compiler
def test_compiled_update_of_gpt2_equals_the_plain_one(learner):
    check_whole(learner(*GPT2, *SMALL), 4)


@needs_compiler
def test_compiled_imagination_of_gru_equals_the_plain_one(learner):
    one = learner("backbone=gru")
    # The losses of actor and critic do not depend on the backbone; the test above compiles them.
    for name in ("imagination_loss", "replay_loss"):
        delattr(one.agent.behavior, name)
    check_whole(one, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_backbone_compiles_to_whole_graphs_once(learner, traced, family):
    overrides, graphs = FAMILIES[family]
    check_whole(learner(*overrides), graphs)


def test_imagination_with_a_shared_past_compiles_to_whole_graphs(learner, traced, monkeypatch):
    monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", 0)
    one = learner(*GPT2, *SMALL)
    caches, select = [], one.agent.world_model.backbone.select
    monkeypatch.setattr(
        one.agent.world_model.backbone, "select", lambda *a: caches.append(select(*a)) or caches[-1]
    )
    check_whole(one, 4)
    assert caches and all(isinstance(cache, SharedPrefixCache) for cache in caches)


def test_compiled_update_in_bfloat16_is_near_the_plain_one(learner, traced):
    one = learner(*GPT2, "precision=bf16")
    # bfloat16 has three digits, and compiled code rounds at other places.
    check_the_same(one, batch(5), tolerance=0.05)


def test_uncompiled_update_compiles_nothing(learner, traced):
    one = learner("backbone=gru")
    with uncompiled(True):
        one.update(batch(0))
    assert counters["stats"]["unique_graphs"] == 0
    one.update(batch(0))
    assert counters["stats"]["unique_graphs"] == 3


@needs_compiler
def test_compiled_run_resumes_bit_for_bit_and_logs_compile_seconds(
    compose, tmp_path, untracked, capsys
):
    few = [
        "algo.total_steps=32",
        "checkpoint.every=20",
        "eval.open_loop_windows=0",
        "replay_ratio=0.25",
    ]
    # The shapes of the test of GPT-2 above, so that its compiled kernels are used again.
    config = compose(*TINY, *GPT2, *SMALL, *few, "compile=true", "eval.final_episodes=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    train(config, whole)
    assert capsys.readouterr().out.count("compiled in ") == 1
    took = [
        row.metrics.get("time/compile_seconds") for row in read_metrics(whole / "metrics.jsonl")
    ]
    assert len([one for one in took if one]) == 1
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    assert saved_trainer(killed)["collector"]["policy_step"] == 20
    torch.manual_seed(123)
    train(replace(config, resume=str(killed)), killed)
    assert differing_paths(saved_trainer(whole), saved_trainer(killed)) == []
    assert metric_records(killed) == metric_records(whole)


def test_run_without_a_compiler_is_refused_before_it_starts(monkeypatch, compose, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile=true: no C\+\+ compiler \(no-such-compiler\)"):
        train(compose(*TINY, "backbone=gru", "compile=true"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_compile_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match="compile=true: a run of 2 processes"):
        check_compiler(torch.device("cpu"))


def test_update_that_is_not_one_graph_is_an_error_in_one_line(learner, traced):
    one = learner("backbone=gru")
    cell = one.agent.world_model.backbone.cell

    def data_dependent(projected, cache):
        return cell(projected, cache) if cache.sum() > 0 else cache

    one.agent.world_model.backbone.cell = data_dependent
    refused = pytest.raises(ConfigError, match="compile=true: torch cannot compile this update")
    with refused as error, compile_errors():
        one.update(batch(0))
    assert "\n" not in str(error.value)
