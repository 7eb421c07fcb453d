"""The settings of our sweeper, as Hydra composes them. Imported for every command: nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SWEEPER = "llmdreamer"
"""Our option of the group hydra/sweeper."""


_REFUSED_LAUNCHER = "hydra_plugins.llmdreamer_sweeper.RefusedLauncher"


@dataclass
class SubmititSettings:
    """`hydra/launcher=submitit_slurm` and `submitit_local`: each process of a run is a job."""

    _target_: str = _REFUSED_LAUNCHER
    cluster: str = "slurm"  # slurm | local
    # Of a job. At its end the run writes a checkpoint and goes on in another job.
    timeout_min: int = 1440
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    # Of Slurm only; null: the site's default.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    exclude: str | None = None
    # Seconds before the limit at which a run is told to write its checkpoint.
    signal_delay_s: int = 180
    # Shell lines before the job, such as `module load cuda`.
    setup: list[str] = field(default_factory=list)
    # Any other option of sbatch, by its name.
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class SubmititLocalSettings(SubmititSettings):
    cluster: str = "local"


@dataclass
class RaySettings:
    """`hydra/launcher=ray`: each process of a run is a task."""

    _target_: str = _REFUSED_LAUNCHER
    # Arguments of ray.init. Without an address, a cluster is started here, of `num_cpus` cores.
    init: dict[str, Any] = field(
        default_factory=lambda: {"address": None, "num_cpus": None, "num_gpus": None}
    )
    # What a task takes: options of ray.remote.
    remote: dict[str, Any] = field(
        default_factory=lambda: {"num_cpus": 1, "num_gpus": None, "resources": None}
    )


LAUNCHERS = {
    "submitit_slurm": SubmititSettings,
    "submitit_local": SubmititLocalSettings,
    "ray": RaySettings,
}
"""Our options of the group hydra/launcher, named as Hydra's plugins name theirs."""


@dataclass
class SweeperSettings:
    """`hydra.sweeper.*`; docs/sweeps.md tells more of each."""

    _target_: str = "hydra_plugins.llmdreamer_sweeper.LLMDreamerSweeper"
    # What varies, `key: values`, as it would be typed; CLI values win.
    params: dict[str, Any] = field(default_factory=dict)
    # Named lists of overrides that belong together, each crossed with `params`.
    arms: dict[str, str] = field(default_factory=dict)
    # One study per arm, of n_trials each, instead of a grid over the arms.
    study_per_arm: bool = False
    # Of a study, in all, over every command and driver. null: a grid.
    n_trials: int | None = None
    # tpe | gp | qmc | nsgaii | random | grid, and arguments of Optuna's class.
    sampler: str = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    # none | median | successive_halving | hyperband | wilcoxon, and arguments of Optuna's class.
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    # maximize | minimize, or a list with one for each objective.
    direction: Any = "maximize"
    # Database URL of the study; null: study.db in the sweep's folder.
    storage: str | None = None
    # null: the specification's name.
    study_name: str | None = None
    # Processes at a time; null: 1, or as many as the devices take.
    n_jobs: int | None = None
    # CUDA devices, e.g. [0,1], of those that the driver sees; empty: every trial sees all there are.
    devices: list[int] = field(default_factory=list)
    per_device: int = 1
    # Deaths without a new checkpoint in between, after which a trial has failed.
    retries: int = 3
    # Seconds between signs of life of a driver; one silent for four of them has died.
    heartbeat: int = 15
    # Seconds a process may take to write its checkpoint when it is stopped.
    stop_within: float = 120.0
    # The program of a trial; empty: that of this command.
    command: list[str] = field(default_factory=list)
