"""The tracking files of a run folder: small JSON files, each with a single writer.

| file | writer | holds |
|---|---|---|
| `metrics.jsonl` | the run | all logged metrics (spool.py) |
| `mlflow.json` | the uploader | the run's id in MLflow |
| `tracking/run.json` | the run | what MLflow should say about the run |
| `tracking/artifacts.jsonl` | the run | files to upload, in order |
| `tracking/upload_cursor.json` | the uploader | how much is uploaded |
| `tracking/truncated.jsonl` | the run, when it resumes | metrics cut from the spool that MLflow may have |
| `tracking/orphaned_runs.jsonl` | the run, when it starts over | earlier attempts' MLflow runs, to be ended |
| `tracking/lock` | - | held by the uploading process |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.flatten import Scalar
from llmdreamer.utils.redact import redact_values

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunInfo:
    """The description of a run that its caller gives at the start.

    `params` is the resolved configuration in the form that `flatten` returns. `tags` are the keys by
    which runs are compared (arm, size, backbone, env, seed, commit, overrides ...). `config_path` is
    a resolved YAML file that is stored with the run.
    """

    name: str
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    parent_run_id: str | None = None
    config_path: Path | None = None


@dataclass
class RunRecord:
    """The run as MLflow should show it. `status` is None while it runs, or if it was killed."""

    uri: str  # without a password
    experiment: str
    name: str
    params: dict[str, Scalar]
    tags: dict[str, str]
    started: float  # epoch seconds
    status: str | None = None
    ended: float | None = None  # epoch seconds

    @property
    def target(self) -> tuple[str, str]:
        """The store and the experiment that the run belongs to."""
        return self.uri, self.experiment


@dataclass
class MlflowRunRef:
    """Identifies the run in MLflow.

    `key` is chosen before the MLflow run is created, and becomes a tag of it. If the process is
    killed between creating that run and writing `run_id`, the next process finds the run by its key.
    """

    uri: str
    experiment: str
    key: str
    run_id: str | None = None

    @property
    def target(self) -> tuple[str, str]:
        """The store and the experiment that the run belongs to."""
        return self.uri, self.experiment


@dataclass
class OrphanedRun(MlflowRunRef):
    """The MLflow run of an earlier attempt in the same folder, and the end that it should get."""

    status: str = "KILLED"
    ended: float = 0.0  # epoch seconds


@dataclass
class UploadCursor:
    """Progress of the uploads of a run.

    Metrics in the first `uploaded_bytes` of the spool are uploaded. Those from `attempted_bytes` on
    are not. Those between may be: a batch was sent, and its success is not confirmed.
    """

    key: str  # of the MlflowRunRef that this cursor belongs to
    uploaded_bytes: int = 0  # of metrics.jsonl
    attempted_bytes: int = 0  # of metrics.jsonl
    artifact_lines: int = 0  # of artifacts.jsonl


RUN_RECORD_FILE = "tracking/run.json"


@dataclass(frozen=True)
class RunFiles:
    """Paths of the tracking files of a run folder."""

    folder: Path
    metrics: Path = field(init=False)
    mlflow_run: Path = field(init=False)
    run_record: Path = field(init=False)
    artifacts: Path = field(init=False)
    upload_cursor: Path = field(init=False)
    truncated: Path = field(init=False)
    orphaned_runs: Path = field(init=False)
    lock: Path = field(init=False)

    def __post_init__(self) -> None:
        names = {
            "metrics": "metrics.jsonl",
            "mlflow_run": "mlflow.json",
            "run_record": RUN_RECORD_FILE,
            "artifacts": "tracking/artifacts.jsonl",
            "upload_cursor": "tracking/upload_cursor.json",
            "truncated": "tracking/truncated.jsonl",
            "orphaned_runs": "tracking/orphaned_runs.jsonl",
            "lock": "tracking/lock",
        }
        for name, path in names.items():
            object.__setattr__(self, name, self.folder / path)


_Record = TypeVar("_Record")


def load(kind: type[_Record], path: Path) -> _Record | None:
    """Read a record, a dataclass stored as JSON; None if the file does not exist.

    Raises:
        ConfigError: if the file is not one that `save` wrote.
    """
    if not path.exists():
        return None
    try:
        # Strict: a number as text, or null for a text, is an error, as in a damaged file.
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path} is damaged ({_first_reason(error)}): delete it to continue without it"
        ) from error


def _first_reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"][:1]), first["msg"]])


def save(record: RunRecord | MlflowRunRef | UploadCursor, path: Path) -> None:
    """Write a record atomically: a reader, also after a kill, finds the old one or the new one."""
    write_atomically(path, json.dumps(redact_values(asdict(record)), indent=1) + "\n")
