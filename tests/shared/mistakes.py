"""A user's mistakes, each of which prints a message: commands, values, environments, files, backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from llmdreamer.backbones import make_backbone
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import (
    Config,
    EnvConfig,
    check,
    from_yaml,
    parse_objectives,
    refuse_unlogged,
)
from llmdreamer.config.catalog import shape_of
from llmdreamer.config.plugins import call
from llmdreamer.envs import make_vector
from llmdreamer.envs.actions import action_encoding
from llmdreamer.envs.observations import observation_encodings
from llmdreamer.envs.returned import read_image, read_reset, read_step
from llmdreamer.replay import SequenceReplay
from llmdreamer.replay.credit import ReplayCredit
from llmdreamer.tracking.store import resolve_uri
from llmdreamer.types import EnvSpec
from llmdreamer.utils.device import torch_device

STUDY = "-m algo.horizon=5,6 hydra.sweeper.n_trials=3"

COMMANDS = f"""
algo.lrr=1
env.kwargs.g=1
env.kwargs={{a:1}}
backbone=gtp2
model=3
model=[XS]
~env
+exp=tmaze
algo.per_rank_batch_size=big
algo.gamma=high
peft=maybe
algo.mlp_keys.encoder=state
algo.optimizer=3
env=gym
algo.lr=[1
model:S
resume=
resume=auto
resume=nope
resume=run model=S
run_name=../x
run_name=run
run_name=link
model=S,M
sweeps=smoke
sweeps=a,b
seeds=3
hydra/launcher=ray
hydra/launcher=x
--frobnicate
-m --cfg job
--config-dir nope
hydra.searchpath=[pkg://nowhere.conf]
hydra.searchpath=[file:///no/where]
+env.kwargs.a@b=1
+hydra.callbacks.x._target_=os.system
+hydra.callbacks.x._target_=torch.load trust=[torch]
trust=['*']
output_root='~no-such-user/x'
-m seeds=2 seed=0,1
-m seed=0,a
-m algo.horizon=interval(1,9)
-m hydra.sweeper.n_trials=3
-m resume=x seed=0,1
-m sweeps=smokee
-m seed=0,1 hydra.sweeper.n_trails=1
-m seed=0,1 +hydra.sweeper.n_trails=2
-m seed=0,1 hydra.sweeper.n_trials=x
-m seed=0,1 hydra.sweeper.command=[nobody]
-m seed=0,1 hydra.sweeper.devices=[0] hydra.sweeper.n_jobs=2
-m seed=0,1 hydra.sweeper.study_name=../x
-m seed=0,1 hydra.sweeper.direction=maximise
-m seed=0,1 hydra/launcher=ray hydra.launcher.ray.init.address=auto
-m seed=0,1 hydra/launcher=submitit_local +hydra.launcher.nodes=2
-m +hydra.sweeper.params.algo.horizon=5
-m +hydra.sweeper.arms.a='seed=0,1'
{STUDY} rerun=true
{STUDY} env.id=glob(*)
{STUDY} algo.gamma=range(1,1)
{STUDY} algo.gamma=interval(0.5,inf)
{STUDY} algo.gamma=interval(1,0.5)
{STUDY} algo.gamma=tag(log,interval(0,1))
{STUDY} algo.gamma=tag(lgo,interval(0.5,1))
{STUDY} algo.gamma=0.9,0.9
{STUDY} algo.gamma=shuffle(0.8,0.9)
{STUDY} hydra.sweeper.start=[3]
{STUDY} hydra.sweeper.start=[{{horizon:5}}]
{STUDY} hydra.sweeper.start=[{{algo.horizon:7}}]
{STUDY} hydra.sweeper.start=[{{}}]
{STUDY} hydra.sweeper.constraints={{parameter:1}}
{STUDY} hydra.sweeper.constraints={{flops:0}}
{STUDY} hydra.sweeper.constraints={{memory:8GB}}
{STUDY} hydra.sweeper.max_hours=0
{STUDY} hydra.sweeper.sampler=hub:auto_sampler
{STUDY} hydra.sweeper.sampler=hub:auto_sampler trust=[optunahub]
-m algo.horizon=5,6 hydra.sweeper.start=[{{}}]
{STUDY} hydra.sweeper.sampler=random2
{STUDY} hydra.sweeper.pruner=medain
{STUDY} hydra.sweeper.pruner=wilcoxon
{STUDY} hydra.sweeper.storage=redis://me:secret@host/x
{STUDY} +hydra.sweeper.arms.a='peft=true'
{STUDY} objective='eval/return,replay/updates'
""".strip().splitlines()

VALUES: list[tuple[str, Any]] = [
    ("algo.horizon", 0),
    ("algo.horizon", 2**60),
    ("algo.gamma", 1.5),
    ("algo.critic.bins", 254),
    ("algo.critic.slow_rate", 0.0),
    ("algo.optimizer.lr", float("nan")),
    ("algo.optimizer.kind", "adm"),
    ("algo.optimizer.kind", "adam"),
    ("algo.optimizer.agc", None),
    ("algo.optimizer.clip", 10.0),
    ("algo.optimizer.freeze_backbone_updates", 5),
    ("algo.precision", "bf61"),
    ("algo.learning_starts", 5000),
    ("algo.imag_starts", 33),
    ("algo.return_norm.low", 0.95),
    ("algo.actor.min_std", 1.0),
    ("algo.mlp_keys.encoder", []),
    ("algo.agent", "os.x"),
    ("algo.options", {"a": 1}),
    ("lora.dropout", 1.0),
    ("seed", -1),
    ("size", "Q"),
    ("algo.world_model.posterior", "couplet"),
    ("device", "gpu"),
    ("run_name", "a/b"),
    ("env.id", " "),
    ("env.image_size", 72),
    ("env.num_envs", 200),
    ("replay.capacity", 32),
    ("objective", "eval/lenght"),
    ("objective", "eval/return,eval/return"),
    ("objective", "eval/return,"),
    ("backbone.width", 48),
    ("backbone.model_type", "opt"),
    ("backbone.options", {"a": 1}),
    ("backbone.name", "gtp2"),
    ("backbone.factory", "os"),
    ("backbone.factory", "os.system"),
]
"""Keys of the default configuration, each with one value that cannot be."""

SMALL = {"hidden_size": 96, "num_hidden_layers": 1, "max_position_embeddings": 32}
BACKBONES: list[dict[str, Any]] = [
    {"name": "gru", "peft": True},
    {"name": "gru", "pretrained": True},
    {"name": "gru", "path": "/models/x"},
    {"name": "hf"},
    {"name": "hf", "pretrained": True},
    {"name": "hf", "pretrained": True, "path": "x", "config": {"layers": 2}},
    {"name": "hf", "model_type": "opt", "config": 3},
    {"name": "hf", "model_type": "lama"},
    {"name": "hf", "model_type": "llama", "config": {"hiden_size": 32}},
    {"name": "hf", "model_type": "opt", "config": {"max_position_embeddings": 8}},
    {"name": "hf", "model_type": "opt", "config": {"num_hidden_layers": 0}},
    {"name": "hf", "model_type": "phi", "config": {"hidden_size": 32, "num_attention_heads": 3}},
    {"name": "hf", "model_type": "gemma3"},
    {"name": "hf", "model_type": "roberta", "config": {**SMALL, "is_decoder": True}},
    {"name": "gpt2", "pretrained": True},
    {"name": "gpt2", "pretrained": True, "path": "/no/such/directory"},
    {"name": "gpt2", "pretrained": True, "path": "nobody/no-such-model"},
    {"name": "gpt2", "pretrained": True, "path": "bert"},
    {"name": "gpt2", "pretrained": True, "path": "empty"},
    {"name": "gpt2", "peft": True, "targets": ["q_proj"]},
    {"name": "mamba", "peft": True, "targets": ["conv1d"]},
    {"name": "block_gru", "width": 500},
]

SAVED = ["a: [", "- 1", "seed: ${oc.env:HOME}", "sed: 1", "seed: many", "seed: 1"]
URIS = ["mlruns", "sqlite://", "sqlite:///", "postgres://host/db", "http://", "databrick"]


def with_value(cfg: Any, key: str, value: Any) -> Any:
    """Return the configuration with the value at a dotted key replaced."""
    head, _, rest = key.partition(".")
    inner = with_value(getattr(cfg, head), rest, value) if rest else value
    return dataclasses.replace(cfg, **{head: inner})


def of_values(cfg: Config) -> Iterator[tuple[str, Callable[[], Any]]]:
    for key, value in VALUES:
        yield f"value {key}={value!r}", partial(check, with_value(cfg, key, value))
    for metric in ("lora/h.0", "eval/best_return", "open_loop/image_error", "time/compile_seconds"):
        other = with_value(cfg, "objective", metric)
        if metric == "eval/best_return":
            other = with_value(other, "eval.keep_best", False)
        yield f"objective {metric}", partial(refuse_unlogged, other)
    for text in ("", "a,,b", "eval/return:bst", "a,a"):
        yield f"objective {text!r}", partial(parse_objectives, text)
    for ratio in (-1, 1e-9):
        yield f"replay ratio {ratio}", partial(ReplayCredit, ratio)
    yield "shape of a size that is not there", partial(shape_of, "qwen3", "S")
    yield "device cuda:99", partial(torch_device, "cuda:99")
    for name in ("os.nothing", "nosuchpackage.a.f", "os.getcwd"):
        trust = ["os", "nosuchpackage"]
        yield f"call of {name}", partial(call, "algo.agent", name, trust, [1], {"a": 2})


def of_backbones(cfg: Config) -> Iterator[tuple[str, Callable[[], Any]]]:
    Path("bert").mkdir()
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    Path("empty").mkdir()
    places = {
        "peft": "algo.world_model.hf_model.peft",
        "pretrained": "algo.world_model.hf_model.from_pretrained",
        "targets": "lora.target_modules",
    }

    def build(options: dict[str, Any]) -> None:
        changed = cfg
        for key, value in options.items():
            there = str(Path(value).resolve()) if value in ("bert", "empty") else value
            changed = with_value(changed, places.get(key, f"backbone.{key}"), there)
        check(changed)
        make_backbone(changed)

    for options in BACKBONES:
        title = " ".join(f"{key}={value}" for key, value in options.items())
        yield f"backbone {title}", partial(build, options)
    long = with_value(cfg, "algo.world_model.recurrent_model.recurrent_state_size", 100)
    yield "backbone of another width", partial(make_backbone, long)


def of_environments() -> Iterator[tuple[str, Callable[[], Any]]]:
    def make(env_id: str, **more: Any) -> None:
        make_vector(EnvConfig(id=env_id, num_envs=1, action_repeat=1, **more), 1, seed=0).close()

    for name in ("CartPol-v1", "NoSuchSuite/Pong-v5", "nosuchmodule:X-v0"):
        yield f"environment {name}", partial(make, name)
    yield "environment's argument", partial(make, "CartPole-v1", kwargs={"colour": "red"})
    yield "environment's limit", partial(make, "CartPole-v1", max_episode_steps=0)
    box = spaces.Box(-1, 1, (2,))
    for space in (
        spaces.Box(-np.inf, np.inf, (1,)),
        spaces.Box(-np.inf, np.inf, (2,), np.int64),
        spaces.Discrete(2**17),
        spaces.Sequence(spaces.Discrete(2)),
        None,
    ):
        yield f"actions {space}", partial(action_encoding, space)
    for space in (
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict(a=spaces.Box(0, 1, (2, 0))),
        spaces.Dict({"a": spaces.Dict(b=box), "a.b": box}),
        spaces.Tuple([]),
    ):
        yield f"observations {space}", partial(observation_encodings, space, 64, 8)
    for scale in ({"velocity": [1.0]}, {"state": [1.0] * 3}):
        yield f"scale {scale}", partial(observation_encodings, box, 64, 8, scale)
    key = observation_encodings(box, 64, 8)["state"]
    for value in ([0, np.nan], [0, np.inf], [0, 0, 0]):
        yield f"observation {value}", partial(key.encode, np.array(value))
    text = observation_encodings(spaces.Text(4), 64, 8)["text"]
    yield "observation that is no text", partial(text.encode, 3)
    one_hot = observation_encodings(spaces.Discrete(4), 64, 8)
    for number in (2.7, None):
        yield f"observation {number} of Discrete(4)", partial(one_hot.encode, number)
    for step in (
        None,
        (0, 0.0, False, {}),
        (0, "x", False, False, {}),
        (0, 0.0, "False", False, {}),
    ):
        yield f"step {step}", partial(read_step, step)
    for first in (0, (0, None)):
        yield f"reset {first}", partial(read_reset, first)
    for image in (None, "+--+", np.zeros((4, 4, 2), np.uint8)):
        yield f"render {type(image).__name__}", partial(read_image, image)


def of_files() -> Iterator[tuple[str, Callable[[], Any]]]:
    for number, text in enumerate(SAVED):
        path = Path(f"saved-{number}.yaml").resolve()
        path.write_text(text)
        yield f"saved configuration {text}", partial(from_yaml, path)
    yield "saved configuration that is not there", partial(from_yaml, Path("none.yaml").resolve())
    for uri in URIS:
        yield f"tracking.uri={uri}", partial(resolve_uri, uri, Path.cwd())
    odd = Path("a%2Fb").resolve()
    odd.mkdir()
    yield "store in a folder with % in its name", partial(resolve_uri, None, odd)
    spec, folder = EnvSpec({"state": (2,)}, 2, True), Path("replay").resolve()
    SequenceReplay(folder, spec, 1, 1000, 4, seed=0).close()
    yield "replay of two environments", partial(SequenceReplay, folder, spec, 2, 1000, 4, seed=0)
    yield "replay too small", partial(SequenceReplay, Path("r2"), spec, 2, 9, 4, seed=0)
    (Path("thesis") / "a").mkdir(parents=True)
    thesis = Path("thesis").resolve()
    yield "replay of another folder", partial(SequenceReplay, thesis, spec, 1, 1000, 4, seed=0)
    checkpoints = Checkpoints(Path("none").resolve(), keep=2)
    yield "checkpoint that is not there", partial(checkpoints.newest, torch.device("cpu"))


PROGRAMS = """
nonsense
evaluate nowhere
evaluate run --episodes 0
evaluate run
imagine nowhere
diagnose nowhere
diagnose run --branches 1
register run a/b
register nowhere model
register run model --trust nowhere
report nowhere
report empty
report empty --status DONE
status ablation
sync empty
fetch stories15 new
fetch stories15m run
""".strip().splitlines()
"""Words after `python -m llmdreamer`."""
