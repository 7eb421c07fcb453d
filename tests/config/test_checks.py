"""Each number keeps to its range, and combinations without sense are refused."""

import dataclasses
import os
import re
from operator import attrgetter
from pathlib import Path
from typing import get_args

import pytest

from llmdreamer.config import RANGES, ConfigError, arm, check, leaves, refuse_unlogged
from llmdreamer.config.metrics import METRICS


def with_value(cfg, key, value):
    """Return cfg with the value at a dotted key replaced."""
    head, _, rest = key.partition(".")
    inner = with_value(getattr(cfg, head), rest, value) if rest else value
    return dataclasses.replace(cfg, **{head: inner})


@pytest.fixture(scope="module")
def cfg(compose):
    return compose()


def test_an_objective_may_be_any_metric_of_the_documentation():
    lines = (Path(os.environ["LLMDREAMER_ROOT"]) / "docs" / "metrics.md").read_text().splitlines()
    first = " ".join(line.split(" | ")[0] for line in lines)
    assert set(re.findall(r"`([a-z_]+/[a-z_]+)`", first)) == METRICS


def test_a_metric_that_no_run_logs_is_refused_but_an_agent_may_log_its_own(cfg):
    check(with_value(cfg, "objective", "eval/return:auc,lora/h.0.attn.c_attn"))
    wrong = with_value(cfg, "objective", "eval/return,eval/lenght:best")
    with pytest.raises(ConfigError, match="no run logs eval/lenght; did you mean 'eval/length'"):
        check(wrong)
    theirs = with_value(with_value(wrong, "algo.agent", "theirs.Agent"), "trust", ["theirs"])
    check(theirs)


@pytest.mark.parametrize(
    ("metric", "key", "value"),
    [
        ("lora/h.0.attn.c_attn", "algo.world_model.hf_model.peft", True),
        ("optimizer/lora_gradient_norm", "algo.world_model.hf_model.peft", True),
        ("open_loop/image_error", "algo.cnn_keys.decoder", ["rgb"]),
        ("time/compile_seconds", "algo.compile", True),
        ("behavior/action_value_loss", "algo.critic.action_value_loss", 1.0),
    ],
)
def test_an_objective_that_this_run_never_logs_is_refused(cfg, metric, key, value):
    asked = with_value(cfg, "objective", f"eval/return,{metric}:best")
    with pytest.raises(ConfigError, match=f"this run never logs {metric}, which takes "):
        refuse_unlogged(asked)
    refuse_unlogged(with_value(asked, key, value))
    # An agent of somebody else's may log it.
    refuse_unlogged(with_value(asked, "algo.agent", "theirs.Agent"))


@pytest.mark.parametrize(
    ("metric", "key", "value"),
    [
        ("open_loop/vector_error", "algo.mlp_keys.decoder", []),
        ("open_loop/reward_error", "eval.open_loop", 0),
        ("eval/best_return", "eval.keep_best", False),
        ("eval/best_return", "eval.every", 0),
        ("system/gpu_memory_share", "device", "cpu"),
        ("world_model/loss", "algo.replay_ratio", 0),
        ("system/peak_memory_bytes", "algo.replay_ratio", 0),
    ],
)
def test_what_is_logged_is_so_only_where_it_can_be(cfg, metric, key, value):
    asked = with_value(cfg, "objective", metric)
    refuse_unlogged(asked)
    with pytest.raises(ConfigError, match=f"this run never logs {metric}, which takes "):
        refuse_unlogged(with_value(asked, key, value))


def test_a_checkpoint_is_timed_without_updates_too(cfg):
    asked = with_value(cfg, "objective", "time/checkpoint_seconds")
    refuse_unlogged(with_value(asked, "algo.replay_ratio", 0))


def test_every_number_has_a_range():
    numbers = {key for key, kind in leaves().items() if {int, float} & {kind, *get_args(kind)}}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("key", RANGES)
def test_minus_one_is_out_of_every_range(cfg, key):
    with pytest.raises(ConfigError, match=rf"{key}=-1: must be "):
        check(with_value(cfg, key, -1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["algo.optimizer.lr", "replay_ratio", "algo.gamma"])
def test_a_number_is_finite(cfg, key, value):
    with pytest.raises(ConfigError, match=rf"{key}={value}: must be a finite number"):
        check(with_value(cfg, key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algo.per_rank_batch_size", 0, "algo.per_rank_batch_size=0: must be >= 1"),
        ("algo.gamma", 1.5, "algo.gamma=1.5: must be in [0, 1]"),
        ("algo.critic.bins", 254, "algo.critic.bins=254: must be odd and >= 3"),
        ("lora.dropout", 1.0, "lora.dropout=1.0: must be in [0, 1)"),
        ("algo.optimizer.lr", 0.0, "algo.optimizer.lr=0.0: must be > 0"),
        ("seed", 2**32, f"seed={2**32}: must be in [0, {2**32})"),
        ("device", "gpu", "device=gpu: must be auto, cpu, cuda or cuda:N"),
        ("device", "cuda:", "device=cuda:: must be auto, cpu, cuda or cuda:N"),
        ("algo.precision", "bf61", "precision=bf61: choose from fp32, bf16; did you mean"),
        ("size", "Q", "size=Q: choose from XS, S, M, L (model=...)"),
        ("env.id", " ", "env.id='': must not be empty"),
        ("replay.capacity", 32, "replay.capacity=32: one sequence of 33 rows does not fit"),
        ("env.num_envs", 500_000, "replay.capacity=1000000: one sequence of 33 rows does not"),
        ("algo.learning_starts", 5000, "nothing would train: algo.learning_starts=5000 of"),
        ("env.num_envs", 200, "nothing would train: algo.total_steps=4500 with env.num_envs=200"),
        ("algo.imag_starts", 33, "algo.imag_starts=33: a sequence has 32 positions"),
        ("algo.return_norm.low", 0.95, "algo.return_norm.low=0.95: must be below"),
        ("algo.actor.min_std", 1.0, "algo.actor.min_std=1.0: must be below algo.actor.max_std=1.0"),
        ("env.image_size", 72, "env.image_size=72: must be a multiple of 16"),
        ("algo.mlp_keys.encoder", [], "are all empty: name the observations"),
    ],
)
def test_a_bad_value_is_told_with_its_range(cfg, key, value, message):
    with pytest.raises(ConfigError) as error:
        check(with_value(cfg, key, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "a b", "a\n", "é", "x" * 101])
def test_a_run_name_is_one_plain_folder_name(cfg, name):
    with pytest.raises(ConfigError, match="run_name="):
        check(with_value(cfg, "run_name", name))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_are_spelled_as_torch_spells_them(cfg, device):
    check(with_value(cfg, "device", device))


def test_null_means_the_default_and_passes(cfg):
    for key in ("threads", "run_name", "algo.optimizer.lora_lr", "env.max_episode_steps"):
        assert attrgetter(key)(cfg) is None
    check(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("peft=true", "backbone=gru takes no LoRA: set peft=false"),
        ("pretrained=true", "backbone=gru has no pretrained weights"),
        ("backbone.path=/models/x", "backbone=gru has no checkpoint"),
    ],
)
def test_the_gru_is_no_language_model(compose, override, message):
    with pytest.raises(ConfigError, match=message):
        compose("backbone=gru", override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=hf"], "backbone=hf: set backbone.model_type"),
        (["backbone=hf", "pretrained=true"], "set backbone.path to a checkpoint"),
        (
            ["backbone=hf", "pretrained=true", "backbone.path=x", "backbone.config={layers:2}"],
            "a checkpoint has its own shape",
        ),
        (["backbone=hf", "backbone.model_type=opt", "backbone.config=3"], "must be like"),
        (["backbone.model_type=opt"], "backbone=gpt2 has its own; use backbone=hf"),
        (["backbone.config={layers:2}"], "backbone=gpt2 has its own; use backbone=hf"),
        (["algo.optimizer.thaw=5"], "algo.optimizer.thaw=5: only pretrained weights"),
        (["algo.optimizer.thaw=5", "pretrained=true", "peft=true"], "thaw=5: only pretrained"),
    ],
)
def test_what_a_backbone_is_not_asked_for(compose, overrides, message):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kind=adm"], "algo.optimizer.kind=adm: choose from laprop, adam; did you mean 'adam'?"),
        (["kind=adam"], "algo.optimizer.agc=0.3 is for kind=laprop: set it to null, and clip"),
        (["agc=null"], "algo.optimizer.agc=null: kind=laprop clips by it"),
        (["clip=1000"], "algo.optimizer.clip=1000.0 is for kind=adam"),
        (["behavior_clip=100"], "algo.optimizer.behavior_clip=100.0 is for kind=adam"),
        (["behavior_eps=1e-5"], "algo.optimizer.behavior_eps=1e-05 is for kind=adam"),
    ],
)
def test_a_constant_of_one_optimiser_is_not_silently_left_unread_by_the_other(
    compose, overrides, message
):
    with pytest.raises(ConfigError) as error:
        compose(*[f"algo.optimizer.{override}" for override in overrides])
    assert message in str(error.value)


def test_pretrained_weights_that_train_whole_may_wait(compose):
    assert compose("pretrained=true", "algo.optimizer.thaw=5").algo.optimizer.thaw == 5


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
def test_arms_have_the_names_the_docs_use(compose, overrides, name):
    assert arm(compose(*overrides)) == name
