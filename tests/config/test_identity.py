"""Which runs are the same: by what reaches the training, not by how it was typed."""

import pytest

from llmdreamer.config.identity import digest, identity, run_name

GPT2_XS = "model=XS", "backbone=gpt2"


@pytest.mark.parametrize(
    ("one", "other"),
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
def test_what_does_not_reach_the_training_does_not_tell_cells_apart(compose, one, other):
    assert digest(compose(*one)) == digest(compose(*other))


@pytest.mark.parametrize(
    ("one", "other"),
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
def test_what_reaches_the_training_does(compose, one, other):
    assert digest(compose(*one)) != digest(compose(*other))


def test_a_run_is_named_by_its_cell_and_its_seed(compose):
    one, other = (run_name(compose("backbone=gru", f"seed={seed}")) for seed in (1, 2))
    assert one.startswith("gru_gru-XS_CartPole-v1_")
    assert one.endswith("_seed1")
    assert one.removesuffix("_seed1") == other.removesuffix("_seed2")


def test_a_password_is_not_part_of_a_cell(compose):
    config = compose("tracking.uri=postgresql://me:secret@host/db")
    assert "secret" not in str(identity(config))
