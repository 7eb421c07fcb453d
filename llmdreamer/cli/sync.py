"""`python -m llmdreamer sync RUN_OR_ROOT`: replay to MLflow what is only on the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmdreamer.tracking.record import WANTED
from llmdreamer.tracking.shipper import say
from llmdreamer.tracking.store import TrackingError
from llmdreamer.tracking.uploads import sync
from llmdreamer.utils.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Upload every finished run below a folder; 0, 1 if a store failed, 2 after a mistake."""
    parser = argparse.ArgumentParser(prog="python -m llmdreamer sync", description=__doc__)
    parser.add_argument("path", type=Path, help="a run's folder, or one that holds many")
    parser.add_argument("--uri", help="another store than the one the run was started with")
    chosen = parser.parse_args(arguments)
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
