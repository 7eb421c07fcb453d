"""What a run folder remembers of its tracking: small JSON files, each with a single writer.

| file | writer | holds |
|---|---|---|
| `metrics.jsonl` | the run | every row (spool.py) |
| `mlflow.json` | the shipper | which MLflow run this is |
| `tracking/run.json` | the run | what MLflow should say of it |
| `tracking/artifacts.jsonl` | the run | files to upload, in order |
| `tracking/shipped.json` | the shipper | how far it got |
| `tracking/cut.jsonl` | the run, as it resumes | rows cut from the spool that MLflow may hold |
| `tracking/abandoned.jsonl` | the run, as it begins anew | MLflow runs of lives before, to be ended |
| `tracking/lock` | - | held by whoever uploads |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.flatten import Scalar

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunInfo:
    """What the caller knows of a run when it starts.

    `params` is the resolved configuration as `flatten` gives it; `tags` say what runs are compared
    by (arm, size, backbone, env, seed, commit, overrides ...); `config_path` is a resolved YAML
    file, stored with the run.
    """

    name: str
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    parent_run_id: str | None = None
    config_path: Path | None = None


@dataclass
class Wanted:
    """What MLflow should say of the run. `status` is None while it runs, or when it was killed."""

    uri: str  # without a password
    experiment: str
    name: str
    params: dict[str, Scalar]
    tags: dict[str, str]
    started: float  # epoch seconds
    status: str | None = None
    ended: float | None = None  # epoch seconds


@dataclass
class Known:
    """The run in MLflow. `key` is chosen before the run is created, and is a tag of it: a process
    killed between creating it and writing `run_id` finds it again."""

    uri: str
    experiment: str
    key: str
    run_id: str | None = None


@dataclass
class Abandoned(Known):
    """The MLflow run of a life that the run in its folder does not go on from, and how that ended."""

    status: str = "KILLED"
    ended: float = 0.0  # epoch seconds


@dataclass
class Shipped:
    """How far the run of `key` is uploaded: rows before `offset` are, rows from `sending` on are
    certainly not, those between may be."""

    key: str
    offset: int = 0  # bytes of metrics.jsonl
    sending: int = 0  # bytes of metrics.jsonl
    artifacts: int = 0  # lines of artifacts.jsonl


@dataclass(frozen=True)
class RunFiles:
    """Where a run folder keeps the above."""

    folder: Path
    metrics: Path = field(init=False)
    known: Path = field(init=False)
    wanted: Path = field(init=False)
    artifacts: Path = field(init=False)
    shipped: Path = field(init=False)
    cut: Path = field(init=False)
    abandoned: Path = field(init=False)
    lock: Path = field(init=False)

    def __post_init__(self) -> None:
        names = {
            "metrics": "metrics.jsonl",
            "known": "mlflow.json",
            "wanted": WANTED,
            "artifacts": "tracking/artifacts.jsonl",
            "shipped": "tracking/shipped.json",
            "cut": "tracking/cut.jsonl",
            "abandoned": "tracking/abandoned.jsonl",
            "lock": "tracking/lock",
        }
        for name, path in names.items():
            object.__setattr__(self, name, self.folder / path)


WANTED = "tracking/run.json"
_Record = TypeVar("_Record", Wanted, Known, Shipped)


def load(kind: type[_Record], path: Path) -> _Record | None:
    """Read a record; None if it was never written.

    Raises:
        ConfigError: if it is not as `save` wrote it.
    """
    if not path.exists():
        return None
    try:
        return kind(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it to go on without") from error


def save(record: Wanted | Known | Shipped, path: Path) -> None:
    """Write a record so that a reader, or the process after a kill, finds the old or the new."""
    write_atomically(path, json.dumps(asdict(record), indent=1) + "\n")
