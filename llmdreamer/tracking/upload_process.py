"""`python -m llmdreamer.tracking.upload_process RUN_DIR PID`: uploads a run while it trains.

The run logs each line of this process's standard output as a warning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmdreamer.tracking.upload_loop import sync_command, upload_until_exit
from llmdreamer.utils.output import STDOUT, discard_output

EXIT_REPORTED = 10
"""Exit code after a line that says what was not uploaded."""


def main(argv: list[str]) -> int:
    """Upload the run in the folder argv[0] until the process argv[1] has ended."""
    folder, owner = Path(argv[0]), int(argv[1])
    os.nice(5)  # leave the processor to training
    say = _open_log()
    try:
        code = upload_until_exit(folder, owner, say)
    except Exception as error:  # noqa: BLE001
        # A bug, or a folder that is gone. Training goes on, and its log needs one line.
        cause = " ".join(str(error).split())
        say(
            f"tracking: uploads have stopped ({type(error).__name__}: {cause});"
            f" upload later with: {sync_command(folder)}"
        )
        return EXIT_REPORTED
    return 0 if code == 0 else EXIT_REPORTED


def _open_log() -> Callable[[str], None]:
    """Return a function that sends a line to the run. What libraries print is discarded."""
    output = os.fdopen(os.dup(STDOUT), "w", buffering=1)
    discard_output()

    def say(line: str) -> None:
        with suppress(OSError):  # the run was killed; uploads continue
            output.write(f"{line}\n")

    return say


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
