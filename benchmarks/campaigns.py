"""The command line of a script with several campaigns, each with its own options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def parse(
    description: str | None, campaigns: Mapping[str, Mapping[str, Any]]
) -> argparse.Namespace:
    """Parse the command line into `campaign` and its options.

    Args:
        campaigns: for each campaign, the default of each option. An option whose default is False is a flag.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = parser.add_subparsers(dest="campaign", required=True)
    for name, options in campaigns.items():
        subparser = parsers.add_parser(name)
        for option, default in options.items():
            if default is False:
                subparser.add_argument(f"--{option}", action="store_true")
            else:
                subparser.add_argument(f"--{option}", type=type(default), default=default)
    return parser.parse_args()
