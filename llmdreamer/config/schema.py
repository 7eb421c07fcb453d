"""The typed schema of every configuration value.

Hydra composes `conf/` against these dataclasses and refuses values of the wrong type and unknown
keys. The YAML files of `conf/` document the meaning, unit and range of each value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING


@dataclass
class KeysConfig:
    encoder: list[str] = field(default_factory=list)
    decoder: list[str] = field(default_factory=list)


@dataclass
class TextKeysConfig:
    encoder: list[str] = field(default_factory=list)
    decoder: list[str] = field(default_factory=list)
    sequence: list[str] = field(default_factory=list)


@dataclass
class RecurrentModelConfig:
    recurrent_state_size: int | None = None  # D; null: the width of the backbone
    dense_units: int = MISSING


@dataclass
class HiddenConfig:
    hidden_size: int = MISSING
    layers: int = MISSING


@dataclass
class HFModelConfig:
    seq_len: int = MISSING
    peft: bool = MISSING
    from_pretrained: bool = MISSING


@dataclass
class WorldModelConfig:
    stochastic_size: int = MISSING
    discrete_size: int = MISSING
    unimix: float = MISSING
    standardize: bool = MISSING
    vector_bins: int = MISSING
    posterior: str = MISSING
    reconstruction_weight: float = MISSING
    continue_weight: float = MISSING
    kl_dynamics_weight: float = MISSING
    kl_representation_weight: float = MISSING
    kl_free_nats: float = MISSING
    discount_in_continue_head: bool = MISSING
    head_layers: int | None = None
    recurrent_model: RecurrentModelConfig = field(default_factory=RecurrentModelConfig)
    transition_model: HiddenConfig = field(default_factory=HiddenConfig)
    representation_model: HiddenConfig = field(default_factory=HiddenConfig)
    hf_model: HFModelConfig = field(default_factory=HFModelConfig)


@dataclass
class ActorConfig:
    ent_coef: float = MISSING
    unimix: float = MISSING
    min_std: float = MISSING
    max_std: float = MISSING


@dataclass
class CriticConfig:
    bins: int = MISSING
    bins_in_symlog: bool = MISSING
    slow_rate: float = MISSING
    slow_regularizer_weight: float = MISSING
    replay_loss_weight: float = MISSING
    action_value_loss_weight: float = MISSING


@dataclass
class ReturnNormConfig:
    decay: float = MISSING
    low: float = MISSING
    high: float = MISSING
    minimum_scale: float = MISSING


@dataclass
class OptimizerConfig:
    lr: float = MISSING
    backbone_lr: float | None = None
    lora_lr: float | None = None
    actor_lr: float | None = None
    critic_lr: float | None = None
    freeze_backbone_updates: int = MISSING
    warmup: int = MISSING
    anneal: float = MISSING
    max_skipped: int = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    eps: float = MISSING
    agc: float | None = MISSING
    kind: str = MISSING
    behavior_eps: float | None = None
    clip: float | None = None
    behavior_clip: float | None = None


@dataclass
class AlgoConfig:
    name: str = MISSING
    agent: str | None = None  # dotted name in another package, which also reads `options`
    options: dict[str, Any] = field(default_factory=dict)
    total_steps: int = MISSING
    learning_starts: int | None = None
    replay_ratio: float = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    per_rank_batch_size: int = MISSING
    per_rank_sequence_length: int = MISSING
    imag_starts: int | None = None
    horizon: int = MISSING
    gamma: float = MISSING
    lmbda: float = MISSING
    dense_units: int = MISSING
    mlp_layers: int = MISSING
    cnn_depth: int = MISSING
    mlp_keys: KeysConfig = field(default_factory=KeysConfig)
    cnn_keys: KeysConfig = field(default_factory=KeysConfig)
    text_keys: TextKeysConfig = field(default_factory=TextKeysConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    return_norm: ReturnNormConfig = field(default_factory=ReturnNormConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class BackboneConfig:
    name: str = MISSING
    path: str | None = None
    model_type: str | None = None
    width: int | None = None  # only for a family with `any_width` in the catalog
    config: Any = None  # a dict[str, Any]; Hydra accepts no new keys in a dict of that type
    factory: str | None = None  # dotted name in another package that builds the backbone
    language_model: bool = False  # with factory: it takes pretrained=true and peft=true
    options: dict[str, Any] = field(default_factory=dict)  # with factory: its keyword arguments


@dataclass
class LoraConfig:
    r: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING
    target_modules: list[str] | None = None


@dataclass
class EnvConfig:
    id: str = MISSING
    num_envs: int = MISSING
    action_repeat: int = MISSING
    max_episode_steps: int | None = None
    processes: bool = False
    max_restarts: int = 10
    timeout: float | None = 300.0
    image_size: int = 64
    max_text_bytes: int = 128
    vector_scale: dict[str, list[float]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReplayConfig:
    capacity: int = MISSING
    terminated_share: float = MISSING


@dataclass
class CheckpointConfig:
    every: int = MISSING
    keep: int = MISSING


@dataclass
class EvalConfig:
    every: int = MISSING
    episodes: int = MISSING
    final_episodes: int = MISSING
    video: bool = MISSING
    keep_best: bool = MISSING
    open_loop_windows: int = MISSING
    greedy: bool = MISSING


@dataclass
class TrackingConfig:
    uri: str | None = None
    experiment: str = MISSING
    log_every: int = MISSING
    upload_checkpoints: bool = MISSING


@dataclass
class Config:
    size: str = MISSING
    recipe: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    threads: int | None = None
    trust: list[str] = field(default_factory=list)
    output_root: str = MISSING
    run_name: str | None = None
    resume: str | None = None
    objective: str = MISSING
    seeds: int | None = None
    rerun: bool = False
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class ComposedConfig(Config):
    """`Config` as Hydra composes it, with short keys for six values below `algo`.

    In conf/algo these values refer to the short keys, so a user may type either. `load` resolves the
    references and drops the short keys: code reads only the values below `algo`.
    """

    peft: bool = MISSING  # algo.world_model.hf_model.peft
    pretrained: bool = MISSING  # algo.world_model.hf_model.from_pretrained
    posterior: str = MISSING  # algo.world_model.posterior
    replay_ratio: float = MISSING  # algo.replay_ratio
    precision: str = MISSING  # algo.precision
    compile: bool = MISSING  # algo.compile


def leaves(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Return the type of every value by its dotted key."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind) and isinstance(kind, type):
            types |= leaves(kind, f"{prefix}{name}.")
        else:
            types[prefix + name] = kind
    return types
