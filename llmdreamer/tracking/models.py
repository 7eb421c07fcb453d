"""Puts a model into MLflow's registry, as a version that names the run it came from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmdreamer.tracking.record import Known, RunFiles, load
from llmdreamer.tracking.shipper import with_password
from llmdreamer.tracking.store import TrackingError, connect, speaking

FOLDER = "policy"
"""Below a run's artifacts, where its model is."""


@dataclass(frozen=True)
class Model:
    """What is stored of a model: `code` calls `mlflow.models.set_model`, the rest is what it needs."""

    code: Path
    packages: Sequence[Path]  # folders of code that go along
    files: Mapping[str, Path]  # artifacts by name
    requirements: Sequence[str]  # of pip, for whoever loads it elsewhere
    options: Mapping[str, Any]  # plain data, its `context.model_config`


def register(run_dir: Path, name: str, model: Model) -> str:
    """Store a model with the run of `run_dir`, register it as `name`; return `models:/NAME/VERSION`.

    Raises:
        TrackingError: if MLflow does not know the run, or refuses.
    """
    known = load(Known, RunFiles(run_dir).known)
    if known is None or known.run_id is None:
        raise TrackingError(f"{run_dir} is in no store yet: python -m llmdreamer sync {run_dir}")
    uri = with_password(known.uri)
    with speaking(uri), TemporaryDirectory() as folder:
        client = connect(uri)
        artifacts = client.get_run(known.run_id).info.artifact_uri
        saved = Path(folder) / FOLDER
        _save(saved, model)
        client.log_artifacts(known.run_id, str(saved), FOLDER)
        _ensure_name(uri, name)
        version = client.create_model_version(name, f"{artifacts}/{FOLDER}", known.run_id)
        return f"models:/{name}/{version.version}"


def _save(folder: Path, model: Model) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    signature = ModelSignature(params=ParamSchema([ParamSpec("reset", DataType.boolean, False)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on types and examples, which fit no observation
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(model.code),
            artifacts={name: str(path) for name, path in model.files.items()},
            code_paths=[*map(str, model.packages)],
            pip_requirements=list(model.requirements),
            model_config=dict(model.options),
            signature=signature,
        )


def _ensure_name(uri: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        connect(uri).create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
