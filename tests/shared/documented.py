"""Reads the names that the documentation lists."""

import os
import re
from pathlib import Path


def documented_metrics() -> set[str]:
    """Return the metrics in the table of docs/metrics.md, without the adapters' (`lora/LAYER`)."""
    page = (Path(os.environ["LLMDREAMER_ROOT"]) / "docs" / "metrics.md").read_text()
    rows = [line for line in page.split("## Tags")[0].splitlines() if line.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    return names - {"lora/LAYER", "lora/h.0.attn.c_attn"}
