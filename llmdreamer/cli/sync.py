"""`llmdreamer sync RUN_OR_ROOT`: uploads to MLflow what is only on the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmdreamer.cli.common import LATEST, find_run
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import RUN_RECORD_FILE
from llmdreamer.tracking.store import resolve_uri
from llmdreamer.tracking.upload_loop import sync
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error, print_line


def main(arguments: list[str] | None = None) -> int:
    """Upload every finished run below a folder; return the exit code.

    0: all is uploaded; 1: a store failed; 2: after a mistake, or if a file of a run is damaged.
    """
    parser = argparse.ArgumentParser(prog="llmdreamer sync", description=__doc__)
    parser.add_argument(
        "path",
        type=Path,
        help=f"folder of a run, a folder that contains runs, or '{LATEST}'",
    )
    parser.add_argument(
        "--uri", help="tracking store (default: the one that the run was started with)"
    )
    args = parser.parse_args(arguments)
    try:
        root = find_run(args.path)
        if args.uri is not None:
            resolve_uri(args.uri, Path.cwd())  # refused once, not for each run
    except ConfigError as error:
        print_error(str(error))
        return ConfigError.exit_code
    return _sync_all(root, args.uri)


def _sync_all(root: Path, uri: str | None) -> int:
    """Upload each run. One that fails does not keep the others from being uploaded."""
    folders = sorted(path.parents[1] for path in root.resolve().rglob(RUN_RECORD_FILE))
    if not folders:
        print_error(f"no run below {root}: no folder there contains {RUN_RECORD_FILE}")
        return 2
    failed: dict[Path, int] = {}  # exit codes
    for folder in folders:
        try:
            print_line(f"{folder}: {sync(folder, uri)} records uploaded")
        except ConfigError as error:  # names the damaged file
            print_error(str(error))
            failed[folder] = ConfigError.exit_code
        except TrackingError as error:
            print_error(f"{folder}: {error}")
            failed[folder] = 1
    if failed and len(folders) > 1:
        names = ", ".join(map(str, failed))
        print_error(f"{len(failed)} of {len(folders)} runs are not uploaded: {names}")
    return max(failed.values(), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
