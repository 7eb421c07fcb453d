"""The command line of a script that holds several campaigns, each with options of its own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def parse(
    description: str | None, campaigns: Mapping[str, Mapping[str, Any]]
) -> argparse.Namespace:
    """What was typed: `campaign`, and its options.

    Args:
        campaigns: by name, the defaults of the options; one that is False is a flag.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = parser.add_subparsers(dest="campaign", required=True)
    for name, options in campaigns.items():
        one = parsers.add_parser(name)
        for option, default in options.items():
            if default is False:
                one.add_argument(f"--{option}", action="store_true")
            else:
                one.add_argument(f"--{option}", type=type(default), default=default)
    return parser.parse_args()
