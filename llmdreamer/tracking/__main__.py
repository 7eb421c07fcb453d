"""`python -m llmdreamer.tracking sync RUN_OR_ROOT`: replay to MLflow what is only on the disk."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llmdreamer.errors import ConfigError
from llmdreamer.tracking.record import WANTED
from llmdreamer.tracking.shipper import say
from llmdreamer.tracking.store import TrackingError
from llmdreamer.tracking.uploads import follow, sync


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmdreamer.tracking")
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("sync", help="upload every run below a folder that is over")
    replay.add_argument("path", type=Path, help="a run's folder, or one that holds many")
    replay.add_argument("--uri", help="tell another store than the one the run was started with")
    ship = commands.add_parser("ship", help="(for the run itself) upload a run while it lives")
    ship.add_argument("path", type=Path)
    ship.add_argument("owner", type=int, help="process id of the run")
    chosen = parser.parse_args(arguments)
    if chosen.command == "ship":
        os.nice(5)  # training comes first
        return follow(chosen.path, chosen.owner)
    return _sync_all(chosen.path, chosen.uri)


def _sync_all(root: Path, uri: str | None) -> int:
    folders = sorted(path.parents[1] for path in root.resolve().rglob(WANTED))
    if not folders:
        say(f"no run below {root}: none of its folders has a {WANTED}")
        return 2
    failures = 0
    for folder in folders:
        try:
            print(f"{folder}: {sync(folder, uri)} rows shipped", flush=True)
        except ConfigError as error:
            say(str(error))
            return 2
        except TrackingError as error:
            say(f"{folder}: {error}")
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
