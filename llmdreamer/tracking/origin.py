"""What a record says of where it was made: commit, machine and the versions of what ran, as tags."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("llmdreamer", "torch", "transformers", "peft", "gymnasium", "mlflow", "optuna")


def origin() -> dict[str, str]:
    """Tags `commit`, `host`, `version.python`, and `version.PACKAGE` of what changes results.

    What MLflow's own pages show of a run's source is told by its names, too.
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
    """The commit of the code that runs, with `-dirty` behind it if files were changed since.

    `unknown` outside a git checkout: one that only has this package installed below it, as a project's
    own virtual environment is, is not the package's.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words],  # noqa: S607  (the git of whoever runs this)
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
