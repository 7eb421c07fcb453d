"""`llmdreamer status NAME_OR_FOLDER`: progress of a sweep, from any terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from llmdreamer.cli.common import LATEST, OUTPUTS, check_path, find_sweep_or_latest
from llmdreamer.sweep.status import StatusReader, SweepStatus, sweep_names
from llmdreamer.sweep.status_table import LiveTable, render_table, render_text
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import discard_output, print_error
from llmdreamer.utils.printable import printable

_LONGEST_INTERVAL = 86_400  # a day; `sleep` refuses what does not fit its clock


def main(arguments: list[str] | None = None) -> int:
    """Print the table of a sweep and return the exit code: 0, or 2 after a line of explanation."""
    parser = argparse.ArgumentParser(prog="llmdreamer status", description=__doc__)
    parser.add_argument(
        "sweep",
        nargs="?",
        help=f"name or folder, or '{LATEST}': the one that started last; without it, all names are listed",
    )
    parser.add_argument("--root", type=Path, default=Path(OUTPUTS), help=f"output_root ({OUTPUTS})")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat at this interval")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args(arguments)
    try:
        check_path(args.root)
        if args.sweep is None:
            _print_names(args.root)
        else:
            reader = StatusReader(find_sweep_or_latest(args.sweep, args.root))
            _print_status(reader, args.watch, as_json=args.json)
        sys.stdout.flush()
    except ConfigError as error:
        print_error(str(error))
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        # Python flushes once more at exit; that must not fail.
        discard_output()
        return 141
    return 0


def _print_names(root: Path) -> None:
    names = sweep_names(root)
    if not names:
        raise ConfigError(f"{root / 'sweeps'} holds no sweep")
    print(printable("\n".join(names)))


def _print_status(reader: StatusReader, interval: float | None, *, as_json: bool) -> None:
    """Print the status once, or at an interval in seconds until no driver is left."""
    if interval is not None and not 0 < interval <= _LONGEST_INTERVAL:
        raise ConfigError(f"--watch {interval}: must be > 0 and <= {_LONGEST_INTERVAL} seconds")
    console = Console()
    is_live = interval is not None and console.is_terminal and not as_json
    status = reader.read()
    with LiveTable(
        reader.read, console if is_live else Console(force_terminal=False)
    ) as live_table:
        while interval is not None and status.drivers:
            if not is_live:
                print(_format(status, as_json=as_json), flush=True)
            live_table.refresh()
            time.sleep(interval)
            status = reader.read()
    if console.is_terminal and not as_json:
        console.print(render_table(status, console.width))
    else:
        print(_format(status, as_json=as_json))


def _format(status: SweepStatus, *, as_json: bool) -> str:
    return json.dumps(status.as_json()) if as_json else render_text(status)


if __name__ == "__main__":
    raise SystemExit(main())
