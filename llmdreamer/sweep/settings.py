"""The typed settings of the sweeper and its launchers. Hydra composes them for every command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SWEEPER = "llmdreamer"
"""Name of this sweeper in the group hydra/sweeper."""


_REFUSED_LAUNCHER = "hydra_plugins.llmdreamer_sweeper.RefusedLauncher"


@dataclass
class SubmititSettings:
    """`hydra/launcher=submitit_slurm` and `submitit_local`: each process of a run is a job."""

    _target_: str = _REFUSED_LAUNCHER
    cluster: str = "slurm"  # slurm | local
    # Time limit of a job. At the limit the run writes a checkpoint and continues in another job.
    timeout_min: int = 1440
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    # Only for Slurm; null: the site's default.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    exclude: str | None = None
    # Seconds before the time limit at which the run gets the signal to write its checkpoint.
    signal_delay_s: int = 180
    # Shell lines to run before the job, such as `module load cuda`.
    setup: list[str] = field(default_factory=list)
    # Other options of sbatch, by name.
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class SubmititLocalSettings(SubmititSettings):
    """`hydra/launcher=submitit_local`: submitit's local replacement for Slurm."""

    cluster: str = "local"


@dataclass
class RaySettings:
    """`hydra/launcher=ray`: each process of a run is a task."""

    _target_: str = _REFUSED_LAUNCHER
    # Arguments of ray.init. Without an address, a local cluster with `num_cpus` cores is started.
    init: dict[str, Any] = field(
        default_factory=lambda: {"address": None, "num_cpus": None, "num_gpus": None}
    )
    # Resources of a task: options of ray.remote.
    remote: dict[str, Any] = field(
        default_factory=lambda: {"num_cpus": 1, "num_gpus": None, "resources": None}
    )


LAUNCHERS = {
    "submitit_slurm": SubmititSettings,
    "submitit_local": SubmititLocalSettings,
    "ray": RaySettings,
}
"""Options of the group hydra/launcher. The names are those of Hydra's own launcher plugins."""


@dataclass
class ConstraintSettings:
    """Largest costs of a trial; null: no limit. A trial that costs more is refused."""

    parameters: float | None = None  # of the agent
    flops: float | None = None  # of all updates of a run
    memory: float | None = None  # peak bytes

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by name."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}


@dataclass
class SweeperSettings:
    """`hydra.sweeper.*`; docs/sweeps.md explains each setting."""

    _target_: str = "hydra_plugins.llmdreamer_sweeper.LLMDreamerSweeper"
    # What varies, as `key: values` in the command line's syntax. Command-line values take precedence.
    params: dict[str, Any] = field(default_factory=dict)
    # Named groups of overrides, each combined with `params`.
    arms: dict[str, str] = field(default_factory=dict)
    # true: one study for each arm, of n_trials each, instead of a grid over the arms.
    study_per_arm: bool = False
    # Trials of a study, in total over all commands and drivers. null: a grid.
    n_trials: int | None = None
    # Further limits of a study; null: none. Once one is reached, no further trial starts.
    max_hours: float | None = None  # in which a driver runs, over all commands
    max_flops: float | None = None  # of training, over all trials
    constraints: ConstraintSettings = field(default_factory=ConstraintSettings)
    # Points that a study runs first: values by swept key. A key that is left out has the
    # configuration's value, so [{}] starts with the configuration itself.
    start: list[dict[str, Any]] = field(default_factory=list)
    # tpe | gp | qmc | nsgaii | random | grid | hub:NAME, and arguments of the Optuna class.
    sampler: str = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    # For hub:NAME: commit, tag or branch of OptunaHub's registry; or a local copy of its folder package.
    hub_ref: str = "main"
    hub_folder: str | None = None
    # none | median | successive_halving | hyperband | wilcoxon, and arguments of the Optuna class.
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    # maximize | minimize, or a list with one for each objective.
    direction: Any = "maximize"
    # Database URL of the study; null: study.db in the sweep's folder.
    storage: str | None = None
    # null: the specification's name.
    study_name: str | None = None
    # Number of processes at a time; null: 1, or `per_device` for each of `devices`.
    n_jobs: int | None = None
    # CUDA devices, e.g. [0,1], counted among those the driver sees; empty: each run sees all of them.
    devices: list[int] = field(default_factory=list)
    per_device: int = 1
    # How often a run is restarted without a new checkpoint in between, before it counts as failed.
    retries: int = 3
    # Seconds between a driver's heartbeats. A driver that is silent for four is considered dead.
    heartbeat: int = 15
    # Seconds that a stopped process may take to write its checkpoint before it is killed.
    stop_within: float = 120.0
    # Program of a run; empty: the program of this command.
    command: list[str] = field(default_factory=list)
