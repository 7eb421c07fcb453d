"""Tags that say where a record was made: commit, machine, and package versions."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("llmdreamer", "torch", "transformers", "peft", "gymnasium", "mlflow", "optuna")


def origin() -> dict[str, str]:
    """Return the tags `commit`, `host`, `version.python`, and `version.PACKAGE` for each of PACKAGES.

    The `mlflow.source.*` tags repeat some of it under the names that MLflow's pages show.
    """
    versions = {f"version.{name}": _version(name) for name in PACKAGES}
    return {
        "commit": commit(),
        "host": platform.node() or "unknown",
        "version.python": platform.python_version(),
        **versions,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit().removesuffix("-dirty"),
    }


@cache
def commit() -> str:
    """Return the commit of this package's source, with `-dirty` appended if files have changed.

    The result is `unknown` unless git tracks this file. A package installed in the virtual
    environment of another project's checkout does not report that project's commit.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],  # noqa: S607  (the user's own git)
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"
