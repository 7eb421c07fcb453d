"""`python -m llmdreamer.tracking.upload_process RUN_DIR PID`: uploads a run while it trains."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llmdreamer.tracking.upload_loop import upload_until_exit


def main(argv: list[str]) -> int:
    """Upload the run in the folder argv[0] until the process argv[1] has ended."""
    folder, owner = argv
    os.nice(5)  # leave the processor to training
    return upload_until_exit(Path(folder), int(owner))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
