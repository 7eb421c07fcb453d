"""Saved configurations: they load unchanged, hold no passwords, and are data only."""

import errno
import os
import time
from dataclasses import asdict, replace

import hydra
import pytest
import yaml
from refusals import refused

from llmdreamer.config import from_yaml, leaves, load, register, to_yaml
from llmdreamer.config.resume import TABLE, Change, change_on_resume
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.flatten import flatten


@pytest.fixture
def saved_run(tmp_path, compose):
    """Return the folder of a run with a saved configuration and checkpoints."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    cfg = compose("algo.total_steps=777", "algo.horizon=3", "backbone=gru", "seed=5")
    (folder / "config.yaml").write_text(to_yaml(cfg))
    return folder


@pytest.mark.parametrize("overrides", [[], ["exp=llm_dreamer_v3"], ["+env.kwargs={a: [1, b]}"]])
def test_saved_configuration_loads_unchanged(tmp_path, compose, overrides):
    cfg = compose(*overrides)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert from_yaml(tmp_path / "config.yaml") == cfg


def test_saved_configuration_holds_no_password(compose):
    cfg = compose("tracking.uri='postgresql://me:hunter2@host/db'", "+env.kwargs.api_key=hunter2")
    text = to_yaml(cfg)
    assert "hunter2" not in text
    assert "postgresql://me:***@host/db" in text
    assert cfg.tracking.uri == "postgresql://me:hunter2@host/db"


@pytest.mark.parametrize(
    "typed",
    [
        "tracking.uri='postgresql://h/db?user=u&password=hunter2'",
        "tracking.uri='postgresql://u:hun/ter2@h/db'",
        "tracking.uri='postgresql://h/db?sslpassword=hunter2&x=1'",
        "+env.kwargs.sslpassword=hunter2",
        "+env.kwargs.credentials={user:u,pin:hunter2}",
        "+env.kwargs.text='login password=hunter2'",
    ],
)
def test_saved_configuration_redacts_every_notation_of_a_password(compose, typed):
    text = to_yaml(compose(typed))
    assert "***" in text and "ter2" not in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [", ["YAML"]),
        ("- 1", ["mapping"]),
        ("seed: ${oc.env:HOME}", ["${...}"]),
        ("!!python/object/apply:os.system ['touch owned']", ["YAML"]),
        ("seed: &a [1]\nenv: *a", ["*a"]),
        ("env: &a {id: x}\nalgo: {<<: *a}", ["*a"]),
        (f"seed: {'[' * 5000}", ["YAML"]),
        (f"seed: {'1' * 5000}", ["YAML"]),
        (f"seed: 0x{'f' * 5000}", ["YAML"]),
        ("seed: 2001-99-99", ["YAML"]),
        ("seed: !!bool x", ["YAML"]),
        ("seed: !!timestamp x", ["YAML"]),
        ("algo: [1]", ["algo"]),
        ("algo: null", ["algo"]),
        ("seed: [1]", ["seed"]),
        ("sed: 1", ["'sed'", "'seed'"]),
        ("seed: many", ["seed", "'many'"]),
        ("seed: 1", ["=..."]),  # the first key that is missing
    ],
)
def test_invalid_saved_configuration_is_refused(tmp_path, text, parts):
    (tmp_path / "config.yaml").write_text(text)
    with refused(ConfigError, tmp_path / "config.yaml", *parts):
        from_yaml(tmp_path / "config.yaml")


WRONG_TYPES = {
    "algo.horizon": ("[1]", "{a: 1}", "true", "null", "x", "2001-01-01", "9" * 400, ".nan"),
    "algo.gamma": ("[1]", "null", "x", "9" * 400, ".inf"),
    "env.id": ("[1]", "{a: 1}", "null"),
    "algo.mlp_keys.encoder": ("x", "{a: 1}", "[null]", "1"),
    "env.kwargs": ("x", "[1]", "null", "{a: !!set {b}}"),
    "env.vector_scale": ("{state: x}", "{state: [x]}", "[1]"),
    "algo.optimizer": ("[1]", "null", "x"),
    "algo.compile": ("x", "[1]", "null"),
}


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_saved_value_of_a_wrong_type_is_refused_by_name(saved_run, key):
    path, marker = saved_run / "config.yaml", "MARKER"
    saved = yaml.safe_load(path.read_text())
    section, *_, last = saved, *key.split(".")
    for name in key.split(".")[:-1]:
        section = section[name]
    section[last] = marker
    text = yaml.safe_dump(saved)
    for value in WRONG_TYPES[key]:
        path.write_text(text.replace(marker, value))
        with refused(ConfigError, path, key):
            from_yaml(path)


def test_saved_number_as_text_is_read_as_that_number(saved_run):
    path = saved_run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 5", "seed: '5'"))
    assert from_yaml(path).seed == 5


def test_nested_aliases_are_refused_before_they_are_expanded(tmp_path):
    """Expanded, these few bytes are 9**9 items."""
    lines = ["a0: &a0 [0,0,0,0,0,0,0,0,0]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    start = time.monotonic()
    with refused(ConfigError, path, "*a0"):
        from_yaml(path)
    assert time.monotonic() - start < 5


def test_missing_saved_configuration_is_refused(tmp_path):
    with refused(ConfigError, tmp_path / "config.yaml", os.strerror(errno.ENOENT)):
        from_yaml(tmp_path / "config.yaml")


def test_resume_uses_the_saved_configuration(saved_run, compose):
    cfg = compose(f"resume={saved_run}")
    assert cfg == replace(from_yaml(saved_run / "config.yaml"), resume=str(saved_run))


def test_resume_applies_typed_overrides(saved_run, compose):
    cfg = compose(f"resume={saved_run}", "algo.total_steps=999", "replay_ratio=2")
    assert (cfg.algo.total_steps, cfg.algo.horizon, cfg.seed) == (999, 3, 5)
    assert cfg.algo.replay_ratio == 2  # follows the short key, as in a new run


FIXED = {
    "env.id": "Acrobot-v1",
    "seed": 6,
    "env.num_envs": 3,
    "env.max_episode_steps": 7,
    "+env.kwargs.sutton_barto_reward": "true",
    "algo.per_rank_batch_size": 2,
    "algo.mlp_keys.encoder": "[state,other]",
    "algo.horizon": 4,
    "algo.gamma": 0.5,
    "algo.dense_units": 24,
    "algo.world_model.hf_model.seq_len": 3,
    "posterior": "coupled",
    "peft": "true",
    "backbone.width": 48,
    "backbone.path": "elsewhere",
    "lora.r": 3,
    "replay.capacity": 5000,
    "algo.optimizer.kind": "adam",
    "size": "S",
}


@pytest.mark.parametrize("key", FIXED)
def test_resume_refuses_another_value_of_what_was_learned_from(saved_run, compose, key):
    named = key.lstrip("+").rpartition(".")[2]
    with refused(ConfigError, f"resume={saved_run}", named):
        compose(f"resume={saved_run}", f"{key}={FIXED[key]}")


def test_resume_accepts_the_saved_value_of_a_fixed_key(saved_run, compose):
    cfg = compose(f"resume={saved_run}", "seed=5", "env.id=CartPole-v1", "algo.imag_starts=null")
    assert (cfg.seed, cfg.env.id) == (5, "CartPole-v1")


CHANGED = {
    "algo.total_steps": 900,
    "replay_ratio": 0.25,
    "precision": "bf16",
    "algo.optimizer.lr": 0.5,
    "algo.optimizer.critic_lr": 0.5,
    "algo.optimizer.anneal": 1,
    "algo.optimizer.max_skipped": 3,
    "eval.every": 3,
    "tracking.log_every": 3,
    "checkpoint.keep": 3,
    "threads": 3,
    "device": "cuda:1",
    "compile": "true",
    "env.processes": "true",
    "env.timeout": "null",
    "objective": "eval/length",
}


def test_resume_takes_budget_ratio_rates_and_what_is_shown(saved_run, compose):
    before = compose(f"resume={saved_run}")
    after = compose(f"resume={saved_run}", *(f"{key}={value}" for key, value in CHANGED.items()))
    flat = flatten(asdict(after))
    differing = {key for key, value in flatten(asdict(before)).items() if flat[key] != value}
    short = {"replay_ratio", "precision", "compile"}
    assert differing == {f"algo.{key}" if key in short else key for key in CHANGED}


def test_every_value_of_the_schema_may_change_or_may_not():
    """A new key of the schema has to be entered in the table of `config.resume`."""
    changes = {leaf: change_on_resume(leaf) for leaf in leaves()}
    assert set(changes.values()) == set(Change)
    assert changes["env.id"] is changes["seed"] is Change.NEVER
    entries = [entry for group in TABLE.values() for entry in group]
    unused = [
        entry
        for entry in entries
        if not any(f"{leaf}.".startswith(f"{entry}.") for leaf in leaves())
    ]
    assert unused == [] and len({*entries}) == len(entries)


def test_resume_merges_a_secret_into_the_saved_arguments(saved_run, compose):
    text = (saved_run / "config.yaml").read_text()
    saved = "  kwargs:\n    token: '***'\n    level: 3\n"
    (saved_run / "config.yaml").write_text(text.replace("  kwargs: {}\n", saved))
    with refused(ConfigError, f"resume={saved_run}", "env.kwargs"):
        compose(f"resume={saved_run}")
    with refused(ConfigError, f"resume={saved_run}", "env.kwargs"):
        compose(f"resume={saved_run}", "+env.kwargs.token=abc", "+env.kwargs.level=4")
    cfg = compose(f"resume={saved_run}", "+env.kwargs.token=abc")
    assert cfg.env.kwargs == {"token": "abc", "level": 3}


@pytest.mark.parametrize("group", ["model=S", "backbone=gpt2", "exp=llm_dreamer_v3"])
def test_resume_refuses_a_typed_group(saved_run, compose, group):
    with refused(ConfigError, f"resume={saved_run}", f"{group.partition('=')[0]}="):
        compose(f"resume={saved_run}", group)


def test_resume_takes_a_redacted_value_from_the_command(saved_run, compose):
    text = (saved_run / "config.yaml").read_text()
    (saved_run / "config.yaml").write_text(
        text.replace("  uri: null", "  uri: postgresql://***@host/db")
    )
    assert compose(f"resume={saved_run}").tracking.uri is None


@pytest.mark.parametrize("missing", ["config.yaml", "checkpoints"])
def test_resume_refuses_an_incomplete_run_folder(saved_run, compose, missing):
    (saved_run / missing).rename(saved_run / "moved")
    with refused(ConfigError, saved_run, missing):
        compose(f"resume={saved_run}")


def test_resume_refuses_a_missing_folder(tmp_path, compose):
    with refused(ConfigError, f"resume={tmp_path}/none"):
        compose(f"resume={tmp_path}/none")


def test_load_ignores_the_hydra_node(compose):
    register()
    with hydra.initialize_config_dir(f"{os.environ['LLMDREAMER_ROOT']}/conf"):
        composed = hydra.compose("config", overrides=["hydra.run.dir=x"], return_hydra_config=True)
    assert "hydra" in composed
    assert load(composed) == compose()
