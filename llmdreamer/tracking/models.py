"""Registers a model in MLflow as a new version that names its run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmdreamer.tracking.failures import TrackingError, tracking_errors
from llmdreamer.tracking.record import MlflowRunRef, RunFiles, load
from llmdreamer.tracking.store import connect
from llmdreamer.tracking.upload_loop import sync_command
from llmdreamer.tracking.uploader import with_password

ARTIFACT_FOLDER = "policy"
"""Folder of the model below the artifacts of its run."""


@dataclass(frozen=True)
class PyfuncModel:
    """Files and settings of a model in MLflow's pyfunc format.

    `code` calls `mlflow.models.set_model`; the other fields hold what that file needs.
    """

    code: Path
    packages: Sequence[Path]  # folders of source code to store with the model
    files: Mapping[str, Path]  # artifacts by name
    requirements: Sequence[str]  # pip requirements for loading the model
    options: Mapping[str, Any]  # plain data, passed as `context.model_config`


def register(run_dir: Path, name: str, model: PyfuncModel) -> str:
    """Store a model with the run of `run_dir`, register it as `name`; return `models:/NAME/VERSION`.

    Raises:
        TrackingError: if the run is not in MLflow yet, or the store fails.
    """
    mlflow_run = load(MlflowRunRef, RunFiles(run_dir).mlflow_run)
    if mlflow_run is None or mlflow_run.run_id is None:
        raise TrackingError(
            f"{run_dir} is not in MLflow yet: upload it with: {sync_command(run_dir)}"
        )
    uri = with_password(mlflow_run.uri)
    with tracking_errors(uri), TemporaryDirectory() as folder:
        client = connect(uri)
        artifact_uri = client.get_run(mlflow_run.run_id).info.artifact_uri
        saved = Path(folder) / ARTIFACT_FOLDER
        _save(saved, model)
        client.log_artifacts(mlflow_run.run_id, str(saved), ARTIFACT_FOLDER)
        _ensure_registered_model(uri, name)
        source = f"{artifact_uri}/{ARTIFACT_FOLDER}"
        version = client.create_model_version(name, source, mlflow_run.run_id)
        return f"models:/{name}/{version.version}"


def _save(folder: Path, model: PyfuncModel) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    signature = ModelSignature(params=ParamSchema([ParamSpec("reset", DataType.boolean, False)]))
    with warnings.catch_warnings():
        # MLflow warns about missing type hints and input examples; neither fits an observation.
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(model.code),
            artifacts={name: str(path) for name, path in model.files.items()},
            code_paths=[*map(str, model.packages)],
            pip_requirements=list(model.requirements),
            model_config=dict(model.options),
            signature=signature,
        )


def _ensure_registered_model(uri: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        connect(uri).create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
