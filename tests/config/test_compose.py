"""Composition of conf/: every option composes, and presets hold their documented values."""

import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.config import ComposedConfig, Config, leaves, to_yaml
from llmdreamer.config.checks import SIZES
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.flatten import flatten

CONF = Path(os.environ["LLMDREAMER_ROOT"]) / "conf"
OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name != "hydra"
]
RECIPES = [path.stem for path in sorted(CONF.glob("recipe/*.yaml"))]


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes(compose, option):
    required = {"env=gym": ["env.id=CartPole-v1"], "backbone=hf": ["backbone.model_type=llama"]}
    assert isinstance(compose(option, *required.get(option, [])), Config)


def test_every_group_has_options():
    assert {option.partition("=")[0] for option in OPTIONS} == {
        "algo", "backbone", "env", "exp", "lora", "model", "recipe",
    }  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_size_is_recorded_in_configuration(compose, size):
    assert compose(f"model={size}").size == size


WIDTHS = {
    "size",
    "algo.dense_units",
    "algo.mlp_layers",
    "algo.cnn_depth",
    "algo.world_model.stochastic_size",
    "algo.world_model.discrete_size",
    "algo.world_model.recurrent_model.dense_units",
    "algo.world_model.transition_model.hidden_size",
    "algo.world_model.representation_model.hidden_size",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_sizes_with_one_recipe_differ_in_widths_only(compose, recipe):
    flat = [flatten(asdict(compose(f"model={size}", f"recipe={recipe}"))) for size in SIZES]
    assert {key for key in flat[0] if len({values[key] for values in flat}) > 1} == WIDTHS
    assert {values["recipe"] for values in flat} == {recipe}


@pytest.mark.parametrize("size", SIZES)
def test_recipes_of_one_size_do_not_change_widths(compose, size):
    flat = [flatten(asdict(compose(f"model={size}", f"recipe={name}"))) for name in RECIPES]
    assert {key for key in flat[0] if len({values[key] for values in flat}) > 1}.isdisjoint(WIDTHS)


@pytest.mark.parametrize(
    ("size", "recipe"), [("XS", "laptop"), ("S", "seed"), ("M", "seed"), ("L", "seed")]
)
def test_size_has_its_default_recipe(compose, size, recipe):
    assert compose(f"model={size}") == compose(f"recipe={recipe}", f"model={size}")
    assert compose(f"model={size}").recipe == recipe


def test_seed_experiment_has_the_values_of_the_seed_document(compose):
    cfg = compose("exp=llm_dreamer_v3")
    world = cfg.algo.world_model
    assert cfg.algo.total_steps == 5_000_000
    assert (cfg.algo.per_rank_batch_size, cfg.algo.per_rank_sequence_length) == (4, 4)
    assert cfg.algo.mlp_keys.encoder == cfg.algo.mlp_keys.decoder == ["state"]
    assert cfg.algo.replay_ratio == 1
    assert world.recurrent_model.recurrent_state_size == 768
    assert world.recurrent_model.dense_units == 768
    assert world.transition_model.hidden_size == 768
    assert world.representation_model.hidden_size == 768
    assert world.hf_model.seq_len == 4
    assert (world.hf_model.peft, world.hf_model.from_pretrained) == (True, False)


def test_algorithm_of_2023_has_the_values_of_its_paper(compose):
    algo = compose("algo=dreamer_v3_2023", "model=S").algo
    optimizer, world = algo.optimizer, algo.world_model
    assert (optimizer.kind, optimizer.lr, optimizer.eps, optimizer.clip) == (
        "adam",
        1e-4,
        1e-8,
        1e3,
    )
    assert optimizer.actor_lr == optimizer.critic_lr == 3e-5
    assert (optimizer.behavior_eps, optimizer.behavior_clip) == (1e-5, 100)
    assert (optimizer.beta1, optimizer.beta2, optimizer.warmup, optimizer.anneal) == (
        0.9,
        0.999,
        0,
        0,
    )
    assert (world.kl_dynamics_weight, world.kl_representation_weight) == (0.5, 0.1)
    assert world.kl_free_nats == 1
    assert not world.discount_in_continue_head
    assert (algo.critic.replay_loss_weight, algo.critic.slow_rate) == (0, 0.02)
    assert algo.critic.bins_in_symlog
    norm = algo.return_norm
    assert (norm.decay, norm.low, norm.high, norm.minimum_scale) == (0.99, 0.05, 0.95, 1)
    assert (algo.horizon, algo.lmbda, algo.actor.ent_coef) == (15, 0.95, 3e-4)


def test_dmc_reference_has_the_published_values_at_the_smallest_size(compose):
    cfg, recipe = compose("exp=dmc_reference"), compose("model=S", "env=dmc")
    algo, world = cfg.algo, cfg.algo.world_model
    assert (cfg.backbone.name, world.posterior, cfg.backbone.width) == ("block_gru", "coupled", 512)
    assert (algo.precision, world.stochastic_size, world.discrete_size) == ("bf16", 32, 4)
    assert (world.transition_model.layers, world.representation_model.layers) == (2, 1)
    assert (algo.mlp_layers, world.head_layers) == (3, 1)
    steps = algo.per_rank_batch_size * algo.per_rank_sequence_length
    assert algo.replay_ratio * steps == 1024
    assert algo.imag_starts == algo.per_rank_sequence_length == 64
    assert cfg.env.action_repeat * algo.total_steps == 500_000
    assert cfg.recipe == "dreamer_v3"
    # The constants are the algorithm's own; the other values are widths.
    for group in ("actor", "critic", "return_norm", "optimizer"):
        assert getattr(algo, group) == getattr(recipe.algo, group), group
    for key in ("horizon", "gamma", "lmbda"):
        assert getattr(algo, key) == getattr(recipe.algo, key), key
    for key in (
        "reconstruction_weight",
        "unimix",
        "kl_dynamics_weight",
        "kl_representation_weight",
        "kl_free_nats",
    ):
        assert getattr(world, key) == getattr(recipe.algo.world_model, key), key


def test_tmaze_experiment_can_be_solved_with_memory(compose):
    cfg = compose("exp=tmaze")
    world, length = cfg.algo.world_model, cfg.env.kwargs["length"]
    assert length + 2 < world.hf_model.seq_len  # the context covers the episode
    assert length < cfg.algo.horizon  # imagination from the sign reaches the fork
    assert world.kl_free_nats < math.log(2)  # the information of a sign
    assert cfg.algo.critic.action_value_loss_weight > 0  # the loss puts the sign into the features


def test_fetch_two_has_a_mission_text_that_can_be_removed(compose):
    cfg, without_text = (
        compose("exp=fetch_two"),
        compose("exp=fetch_two", "algo.text_keys.encoder=[]"),
    )
    assert cfg.algo.text_keys.encoder == cfg.algo.text_keys.decoder == ["mission"]
    assert without_text.algo.text_keys.decoder == [] and without_text.algo.cnn_keys.encoder == [
        "image"
    ]
    # An agent that faces the wrong ball must explore.
    assert cfg.algo.actor.ent_coef > compose().algo.actor.ent_coef


def test_typed_value_overrides_the_experiment(compose):
    cfg = compose("exp=llm_dreamer_v3", "peft=false", "model=XS", "env=acrobot")
    assert (cfg.size, cfg.env.id) == ("XS", "Acrobot-v1")
    assert not cfg.algo.world_model.hf_model.peft


@pytest.mark.parametrize(
    ("public", "nested"),
    [
        ("peft=true", "algo.world_model.hf_model.peft=true"),
        ("pretrained=true", "algo.world_model.hf_model.from_pretrained=true"),
        ("replay_ratio=2", "algo.replay_ratio=2"),
        ("precision=bf16", "algo.precision=bf16"),
        ("compile=true", "algo.compile=true"),
    ],
)
def test_short_and_nested_key_give_the_same_configuration(compose, public, nested):
    assert compose(public) == compose(nested) != compose()


def test_short_and_nested_posterior_give_the_same_configuration(compose):
    short = compose("backbone=gru", "posterior=coupled")
    assert short == compose("backbone=gru", "algo.world_model.posterior=coupled")
    assert short.algo.world_model.posterior == "coupled"


def test_short_keys_are_not_part_of_the_configuration():
    assert leaves(ComposedConfig).keys() - leaves().keys() == {
        "peft", "pretrained", "posterior", "replay_ratio", "precision", "compile",
    }  # fmt: skip


def test_default_prefill_is_500_steps_or_a_quarter_of_the_run(compose):
    for total, prefill in [(5000, 500), (2000, 500), (1000, 250), (50, 12)]:
        assert compose(f"algo.total_steps={total}").algo.learning_starts == prefill


def test_null_imag_starts_is_every_position(compose):
    assert compose("algo.imag_starts=null").algo.imag_starts == 32


def test_added_unknown_key_is_refused(compose):
    with refused(ConfigError, "'algo.horizn'", "'algo.horizon'"):
        compose("+algo.horizn=3")


def test_seed_zero_is_saved(compose):
    assert "seed: 0" in to_yaml(compose("seed=0"))
