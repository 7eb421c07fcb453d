"""Where the time of a gradient update goes, by backbone. Run by hand.

    python benchmarks/step.py [--backbones gru gpt2 ...] [--threads 1] [--repeat 5] [--peer-shapes]
        [--processor-time] [override ...]

With `compile=true` each backbone has two rows, plain and compiled, of updates made in turns. The table is
printed, the figures also written as JSON (--json FILE). A share of the peak counts the matrix products
only, over the whole time of an update; the peak is a large product's, measured here before each
backbone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from workload import PEER_SHAPES, PHASES, Update, gemm_peak

from llmdreamer.training.clock import peak_memory
from llmdreamer.training.compile import uncompiled
from llmdreamer.utils.device import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "smollm2", "mamba"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5, help="updates timed, after two unseen")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-shapes", action="store_true", help="SheepRL's, as in peers.py")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="of the first thread, which on a busy machine says more: with --threads 1",
    )
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    if given.peer_shapes:
        overrides = [*PEER_SHAPES, *overrides]
    prepare(given.threads)
    clock = time.thread_time if given.processor_time else time.perf_counter
    rows = []
    for name in given.backbones:
        update = Update([f"backbone={name}", *overrides], given.device, clock)
        rows += measure(name, update, given.repeat)
    columns = [
        "backbone",
        "compiled",
        "parameters",
        "ms an update",
        *PHASES,
        "GFLOP",
        "of the peak",
        "peak memory",
    ]
    table = Table(
        *columns, title=" ".join([f"{given.threads} threads, {given.device}", *overrides])
    )
    for row in rows:
        table.add_row(
            row["backbone"],
            "-" if row["compile_seconds"] is None else f"in {row['compile_seconds']:.0f} s",
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['seconds'] * 1e3:.0f} [{row['least'] * 1e3:.0f}, {row['most'] * 1e3:.0f}]",
            *(f"{row['phases'][phase] * 1e3:.0f}" for phase in PHASES),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['share']:.0%}",
            f"{row['memory'] / 2**20:.0f} MiB",
        )
    Console(width=140).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def measure(backbone: str, update: Update, repeat: int) -> list[dict]:
    """Medians over `repeat` updates: of plain ones, and with `compile=true` of compiled ones."""
    peak, flops = gemm_peak(str(update.device), clock=update.clock), update.flops()
    forms = [partial(uncompiled, update.config.algo.compile)]
    if update.config.algo.compile:
        forms.append(nullcontext)
    runs: list[list[tuple[float, dict]]] = [[] for _ in forms]
    for _ in range(1 + repeat):
        for run, form in zip(runs, forms, strict=True):
            with form():
                run.append((update(), update.phases))
    return [
        _row(backbone, update, run[1:], flops, peak) | {"compile_seconds": seconds}
        # The first compiled update compiles.
        for run, seconds in zip(runs, [None, *(run[0][0] for run in runs[1:])], strict=True)
    ]


def _row(
    backbone: str, update: Update, run: list[tuple[float, dict]], flops: float, peak: float
) -> dict:
    seconds, phases = zip(*run, strict=True)
    middle = statistics.median(seconds)
    return {
        "backbone": backbone,
        "parameters": update.parameters,
        "seconds": middle,
        "least": min(seconds),
        "most": max(seconds),
        "phases": {name: statistics.median(one[name] for one in phases) for name in PHASES},
        "flops": flops,
        "peak": peak,
        "share": flops / middle / peak,
        "memory": peak_memory(update.device),
    }


if __name__ == "__main__":
    main()
