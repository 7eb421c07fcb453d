"""Checks: numbers out of range and invalid combinations are refused."""

import dataclasses
from operator import attrgetter
from typing import get_args

import pytest
from documented import documented_metrics
from refusals import refused

from llmdreamer.config import RANGES, arm, check, leaves, refuse_unlogged
from llmdreamer.config.metrics import METRICS
from llmdreamer.utils.errors import ConfigError


def with_value(cfg, key, value):
    """Return cfg with the value at a dotted key replaced."""
    head, _, rest = key.partition(".")
    inner = with_value(getattr(cfg, head), rest, value) if rest else value
    return dataclasses.replace(cfg, **{head: inner})


@pytest.fixture(scope="module")
def cfg(compose):
    return compose()


def test_documentation_lists_every_metric():
    assert documented_metrics() == METRICS


def test_unknown_objective_is_refused_unless_an_agent_plugin_may_log_it(cfg):
    check(with_value(cfg, "objective", "eval/return:auc,lora/h.0.attn.c_attn"))
    wrong = with_value(cfg, "objective", "eval/return,eval/lenght:best")
    with refused(ConfigError, "objective=", "eval/lenght", "'eval/length'"):
        check(wrong)
    plugin = with_value(with_value(wrong, "algo.agent", "theirs.Agent"), "trust", ["theirs"])
    check(plugin)


@pytest.mark.parametrize(
    ("metric", "key", "value"),
    [
        ("lora/h.0.attn.c_attn", "algo.world_model.hf_model.peft", True),
        ("optimizer/lora_gradient_norm", "algo.world_model.hf_model.peft", True),
        ("open_loop/image_error", "algo.cnn_keys.decoder", ["rgb"]),
        ("time/compile_seconds", "algo.compile", True),
        ("behavior/action_value_loss", "algo.critic.action_value_loss_weight", 1.0),
    ],
)
def test_objective_that_needs_a_setting_is_refused_without_it(cfg, metric, key, value):
    requested = with_value(cfg, "objective", f"eval/return,{metric}:best")
    with refused(ConfigError, "objective=", metric):
        refuse_unlogged(requested)
    refuse_unlogged(with_value(requested, key, value))
    # An agent of another package may log it.
    refuse_unlogged(with_value(requested, "algo.agent", "theirs.Agent"))


@pytest.mark.parametrize(
    ("metric", "key", "value"),
    [
        ("open_loop/vector_error", "algo.mlp_keys.decoder", []),
        ("open_loop/reward_error", "eval.open_loop_windows", 0),
        ("eval/best_return", "eval.keep_best", False),
        ("eval/best_return", "eval.every", 0),
        ("system/gpu_memory_share", "device", "cpu"),
        ("world_model/loss", "algo.replay_ratio", 0),
        ("system/peak_memory_bytes", "algo.replay_ratio", 0),
    ],
)
def test_objective_that_a_setting_disables_is_refused(cfg, metric, key, value):
    requested = with_value(cfg, "objective", metric)
    refuse_unlogged(requested)
    with refused(ConfigError, "objective=", metric):
        refuse_unlogged(with_value(requested, key, value))


def test_checkpoint_time_is_an_objective_without_updates(cfg):
    requested = with_value(cfg, "objective", "time/checkpoint_seconds")
    refuse_unlogged(with_value(requested, "algo.replay_ratio", 0))


def test_every_number_has_a_range():
    numbers = {key for key, kind in leaves().items() if {int, float} & {kind, *get_args(kind)}}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("key", RANGES)
def test_minus_one_is_out_of_range(cfg, key):
    with refused(ConfigError, f"{key}=-1"):
        check(with_value(cfg, key, -1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["algo.optimizer.lr", "algo.replay_ratio", "algo.gamma"])
def test_non_finite_number_is_refused(cfg, key, value):
    with refused(ConfigError, f"{key}={value}", "finite"):
        check(with_value(cfg, key, value))


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("algo.per_rank_batch_size", 0, ["algo.per_rank_batch_size=0", ">= 1"]),
        ("algo.gamma", 1.5, ["algo.gamma=1.5", "[0, 1]"]),
        ("algo.critic.bins", 254, ["algo.critic.bins=254", "odd", ">= 3"]),
        ("lora.dropout", 1.0, ["lora.dropout=1.0", "[0, 1)"]),
        ("algo.optimizer.lr", 0.0, ["algo.optimizer.lr=0.0", "> 0"]),
        ("seed", 2**32, [f"seed={2**32}", f"[0, {2**32})"]),
        ("device", "gpu", ["device=gpu", "auto", "cpu", "cuda"]),
        ("device", "cuda:", ["device=cuda:", "auto", "cpu", "cuda:N"]),
        ("algo.precision", "bf61", ["precision=bf61", "fp32", "'bf16'"]),
        ("size", "Q", ["size=Q", "XS, S, M, L", "model="]),
        ("env.id", " ", ["env.id=''", "empty"]),
        ("replay.capacity", 32, ["replay.capacity=32", "33"]),
        ("env.num_envs", 500_000, ["replay.capacity=1000000", "33", "env.num_envs=500000"]),
        ("algo.learning_starts", 5000, ["algo.learning_starts=5000", "algo.total_steps=4500"]),
        ("env.num_envs", 200, ["algo.total_steps=4500", "env.num_envs=200", "33"]),
        ("algo.imag_starts", 33, ["algo.imag_starts=33", "32", "algo.per_rank_sequence_length"]),
        ("algo.return_norm.low", 0.95, ["algo.return_norm.low=0.95", "algo.return_norm.high=0.95"]),
        ("algo.actor.min_std", 1.0, ["algo.actor.min_std=1.0", "algo.actor.max_std=1.0"]),
        ("env.image_size", 72, ["env.image_size=72", "multiple", "16"]),
        (
            "algo.mlp_keys.encoder",
            [],
            [f"algo.{kind}_keys.encoder" for kind in ("mlp", "cnn", "text")],
        ),
    ],
)
def test_invalid_value_is_refused_with_its_range(cfg, key, value, parts):
    with refused(ConfigError, *parts):
        check(with_value(cfg, key, value))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "a b", "a\n", "é", "x" * 101])
def test_run_name_that_is_not_a_plain_folder_name_is_refused(cfg, name):
    with refused(ConfigError, f"run_name={name!r}"):
        check(with_value(cfg, "run_name", name))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_device_names_of_torch_are_accepted(cfg, device):
    check(with_value(cfg, "device", device))


def test_null_is_accepted_where_it_means_the_default(cfg):
    for key in ("threads", "run_name", "algo.optimizer.lora_lr", "env.max_episode_steps"):
        assert attrgetter(key)(cfg) is None
    check(cfg)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("peft=true", "peft=false"),
        ("pretrained=true", "pretrained=false"),
        ("backbone.path=/models/x", "backbone.path=/models/x"),
    ],
)
def test_gru_refuses_options_of_language_models(compose, override, part):
    with refused(ConfigError, "backbone=gru", part):
        compose("backbone=gru", override)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["backbone=hf"], ["backbone=hf", "backbone.model_type"]),
        (["backbone=hf", "pretrained=true"], ["backbone=hf", "pretrained=true", "backbone.path"]),
        (
            ["backbone=hf", "pretrained=true", "backbone.path=x", "backbone.config={layers:2}"],
            ["backbone.config={'layers': 2}", "pretrained=false"],
        ),
        (
            ["backbone=hf", "backbone.model_type=opt", "backbone.config=3"],
            ["backbone.config=3", "{hidden_size:128}"],
        ),
        (["backbone.model_type=opt"], ["backbone.model_type=opt", "=gpt2", "backbone=hf"]),
        (
            ["backbone.config={layers:2}"],
            ["backbone.config={'layers': 2}", "=gpt2", "backbone=hf"],
        ),
        (
            ["algo.optimizer.freeze_backbone_updates=5"],
            ["freeze_backbone_updates=5", "pretrained=true", "peft=false"],
        ),
        (
            ["algo.optimizer.freeze_backbone_updates=5", "pretrained=true", "peft=true"],
            ["freeze_backbone_updates=5", "pretrained=true", "peft=false"],
        ),
    ],
)
def test_invalid_backbone_option_is_refused(compose, overrides, parts):
    with refused(ConfigError, *parts):
        compose(*overrides)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("kind=adm", ["algo.optimizer.kind=adm", "laprop, adam", "'adam'"]),
        ("kind=adam", ["algo.optimizer.agc=0.3", "kind=laprop", "null"]),
        ("agc=null", ["algo.optimizer.agc=null", "kind=laprop"]),
        ("clip=1000", ["algo.optimizer.clip=1000.0", "kind=adam"]),
        ("behavior_clip=100", ["algo.optimizer.behavior_clip=100.0", "kind=adam"]),
        ("behavior_eps=1e-5", ["algo.optimizer.behavior_eps=1e-05", "kind=adam"]),
    ],
)
def test_constant_of_the_other_optimizer_is_refused(compose, override, parts):
    with refused(ConfigError, *parts):
        compose(f"algo.optimizer.{override}")


def test_fully_trained_pretrained_backbone_can_be_frozen_first(compose):
    cfg = compose("pretrained=true", "algo.optimizer.freeze_backbone_updates=5")
    assert cfg.algo.optimizer.freeze_backbone_updates == 5


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["backbone=gru", "posterior=coupled"], "reference"),
        (["exp=dmc_reference"], "reference"),
        (["backbone=block_gru"], "block_gru"),
        (["backbone=gru"], "gru"),
        (["peft=false", "pretrained=false"], "scratch"),
        (["peft=false", "pretrained=true"], "pretrained-full"),
        (["peft=true", "pretrained=true"], "pretrained-lora"),
        (["exp=llm_dreamer_v3"], "random-frozen-lora"),
    ],
)
def test_arm_has_its_documented_name(compose, overrides, name):
    assert arm(compose(*overrides)) == name
