"""`llmdreamer sync RUN_OR_ROOT`: uploads to MLflow what is only on the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmdreamer.cli.common import check_path
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import RUN_RECORD_FILE
from llmdreamer.tracking.upload_loop import sync
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error, print_line


def main(arguments: list[str] | None = None) -> int:
    """Upload every finished run below a folder; return 0, 1 if a store failed, 2 after a mistake."""
    parser = argparse.ArgumentParser(prog="llmdreamer sync", description=__doc__)
    parser.add_argument("path", type=Path, help="folder of a run, or a folder that contains runs")
    parser.add_argument(
        "--uri", help="tracking store (default: the one that the run was started with)"
    )
    args = parser.parse_args(arguments)
    try:
        check_path(args.path)
    except ConfigError as error:
        print_error(str(error))
        return ConfigError.exit_code
    return _sync_all(args.path, args.uri)


def _sync_all(root: Path, uri: str | None) -> int:
    folders = sorted(path.parents[1] for path in root.resolve().rglob(RUN_RECORD_FILE))
    if not folders:
        print_error(f"no run below {root}: no folder there contains {RUN_RECORD_FILE}")
        return 2
    failures = 0
    for folder in folders:
        try:
            print_line(f"{folder}: {sync(folder, uri)} records uploaded")
        except ConfigError as error:
            print_error(str(error))
            return 2
        except TrackingError as error:
            print_error(f"{folder}: {error}")
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
