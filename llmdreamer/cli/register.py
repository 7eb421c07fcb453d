"""`llmdreamer register RUN NAME`: add a run's policy to MLflow's model registry."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from llmdreamer.cli.common import POLICY_FOLDERS, add_best, make_parser, run_command
from llmdreamer.config.plugins import package_folder
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error

PACKAGE = Path(__file__).parents[1]
"""The package folder, which is stored with the model."""
# Packages that acting needs; the code of llmdreamer is stored with the model.
REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "peft", "numpy", "gymnasium", "pillow", "omegaconf"),
    *("pyyaml", "filelock"),
)


def main(argv: list[str] | None = None) -> int:
    """Register the last or the best policy; return 0, 2 after a one-line error, or 1 if the store fails."""
    parser = make_parser("register", __doc__)
    parser.add_argument("name", help="name of the model; an existing one gets a new version")
    add_best(parser)
    args = parser.parse_args(argv)
    try:
        return run_command(args, _register)
    except TrackingError as error:
        print_error(str(error))
        return 1


def _register(args: argparse.Namespace) -> str:
    name = args.name
    if not re.fullmatch(r"[\w. -]+", name):
        raise ConfigError(f"{name}: a model name may hold letters, digits, spaces and . _ - only")
    # Imported late, so that the errors above appear without loading torch and mlflow.
    from llmdreamer.export.policy import export
    from llmdreamer.tracking.models import PyfuncModel, register

    with TemporaryDirectory() as folder:
        files = export(args.run_dir, Path(folder), args.trust, POLICY_FOLDERS[args.best])
        model = PyfuncModel(
            code=PACKAGE / "export" / "pyfunc_policy.py",
            packages=[PACKAGE, *map(package_folder, args.trust)],
            files=files,
            requirements=[*map(_pinned, REQUIREMENTS)],
            options={"trust": args.trust},
        )
        found = register(args.run_dir, name, model)
    return f"{found}\nload it with: mlflow.pyfunc.load_model('{found}').predict(observation)"


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return package


if __name__ == "__main__":
    sys.exit(main())
