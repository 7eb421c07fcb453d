"""Identity of runs: equal if the values that affect training are equal."""

import pytest

from llmdreamer.config.identity import digest, identity, run_name

GPT2_XS = "model=XS", "backbone=gpt2"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["peft=false", "lora.r=8"], ["peft=false", "lora.r=16"]),
        (["peft=false"], ["peft=false", "algo.optimizer.lora_lr=1e-3"]),
        (["peft=true"], ["peft=true", "algo.optimizer.backbone_lr=1e-3"]),
        (["backbone=gru"], ["backbone=gru", "lora.alpha=4"]),
        (["peft=true"], ["algo.world_model.hf_model.peft=true"]),
        (["replay_ratio=1"], ["algo.replay_ratio=1.0"]),
        (["seed=0"], ["seed=1"]),
        ([], ["threads=2", "device=cpu", "output_root=x", "run_name=y"]),
        ([], ["objective=eval/length:best", "seeds=3", "rerun=true"]),
        ([], ["checkpoint.every=7", "tracking.log_every=3", "eval.video=true"]),
    ],
)
def test_values_without_effect_on_training_keep_the_digest(compose, first, second):
    assert digest(compose(*first)) == digest(compose(*second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["peft=true", "lora.r=8"], ["peft=true", "lora.r=16"]),
        (["peft=true"], ["peft=true", "algo.optimizer.lora_lr=1e-3"]),
        (["peft=false"], ["peft=false", "algo.optimizer.backbone_lr=1e-3"]),
        (["backbone=gru"], ["backbone=gru", "algo.optimizer.backbone_lr=1e-3"]),
        (["peft=true"], ["peft=false"]),
        (["backbone=gpt2"], ["backbone=gru"]),
        (["model=XS"], ["model=S"]),
        (["env=cartpole"], ["env=acrobot"]),
        ([], ["+env.kwargs.sutton_barto_reward=true"]),
        ([], ["eval.greedy=false"]),
        ([], ["algo.critic.action_value_loss_weight=0.5"]),
        ([], ["algo.total_steps=4000"]),
        ([], ["eval.every=100"]),
    ],
)
def test_values_that_affect_training_change_the_digest(compose, first, second):
    assert digest(compose(*first)) != digest(compose(*second))


def test_run_name_is_that_of_the_cell_plus_the_seed(compose):
    first, second = (run_name(compose("backbone=gru", f"seed={seed}")) for seed in (1, 2))
    assert first.startswith("gru_gru-XS_CartPole-v1_")
    assert first.endswith("_seed1")
    assert first.removesuffix("_seed1") == second.removesuffix("_seed2")


def test_identity_holds_no_password(compose):
    config = compose("tracking.uri=postgresql://me:secret@host/db")
    assert "secret" not in str(identity(config))
