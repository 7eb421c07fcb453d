"""`python -m llmdreamer.register RUN_DIR NAME`: put a run's policy into MLflow's model registry."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from llmdreamer.errors import ConfigError
from llmdreamer.tracking.store import TrackingError

# What acting needs of the packages that training needs; its own code goes with the model.
REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "peft", "numpy", "gymnasium", "pillow", "omegaconf"),
    *("pyyaml", "filelock"),
)


def main(argv: list[str] | None = None) -> int:
    """Register the newest checkpoint's policy; 0, 2 after a line that says what is wrong, or 1 if
    the store fails."""
    parser = argparse.ArgumentParser(prog="python -m llmdreamer.register", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the folder of a run, as its summary names it")
    parser.add_argument("name", help="of the model; one that is there gets a new version")
    args = parser.parse_args(argv)
    try:
        print(_register(args.run_dir, args.name))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except TrackingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _register(run_dir: Path, name: str) -> str:
    if not re.fullmatch(r"[\w. -]+", name):
        raise ConfigError(f"{name}: a model's name has letters, digits, spaces and . _ - only")
    # Imported late: a typing error does without torch and mlflow.
    from llmdreamer.policy import export
    from llmdreamer.tracking.models import register

    with TemporaryDirectory() as folder:
        files = export(run_dir, Path(folder))
        code = Path(__file__).with_name("pyfunc_policy.py")
        found = register(run_dir, name, code, files, [*map(_pinned, REQUIREMENTS)])
    return f"{found}\nload it with: mlflow.pyfunc.load_model('{found}').predict(observation)"


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return package


if __name__ == "__main__":
    sys.exit(main())
