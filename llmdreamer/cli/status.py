"""`python -m llmdreamer status NAME_OR_FOLDER`: how far a sweep is, from any terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from llmdreamer.sweep.status import StatusReader, SweepStatus, find, known
from llmdreamer.sweep.status_table import LiveTable, render_table, render_text
from llmdreamer.utils.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0, or 2 after a line that says why there is none."""
    parser = argparse.ArgumentParser(prog="python -m llmdreamer status", description=__doc__)
    parser.add_argument("sweep", nargs="?", help="name or folder; without it, all names are listed")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="output_root (outputs)")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat at this interval")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.sweep is None:
            _list(chosen.root)
        else:
            _show(StatusReader(find(chosen.sweep, chosen.root)), chosen.watch, as_json=chosen.json)
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        return 141
    return 0


def _list(root: Path) -> None:
    names = known(root)
    if not names:
        raise ConfigError(f"{root / 'sweeps'} holds no sweep")
    print("\n".join(names))


def _show(reader: StatusReader, every: float | None, *, as_json: bool) -> None:
    """Once, or with `every` until no driver is left."""
    if every is not None and every <= 0:
        raise ConfigError(f"--watch {every}: must be > 0")
    console = Console()
    live = every is not None and console.is_terminal and not as_json
    sweep = reader.look()
    with LiveTable(reader.look, console if live else Console(force_terminal=False)) as screen:
        while every is not None and sweep.drivers:
            if not live:
                print(_text(sweep, as_json=as_json), flush=True)
            screen.refresh()
            time.sleep(every)
            sweep = reader.look()
    if console.is_terminal and not as_json:
        console.print(render_table(sweep, console.width))
    else:
        print(_text(sweep, as_json=as_json))


def _text(sweep: SweepStatus, *, as_json: bool) -> str:
    return json.dumps(sweep.as_json()) if as_json else render_text(sweep)


if __name__ == "__main__":
    raise SystemExit(main())
