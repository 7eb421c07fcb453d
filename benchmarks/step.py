"""Measure the time of a gradient update by phase and backbone. Run by hand.

    python benchmarks/step.py [--backbones gru gpt2 ...] [--threads 1] [--repeat 5] [--peer-shapes]
        [--processor-time] [override ...]

With `compile=true` each backbone has two rows, for plain and compiled updates, which alternate. The table is
printed; --json FILE also writes the figures. The share of the peak is the FLOP of the matrix products over
the time of the whole update. The peak is that of a large matrix product, measured before each backbone.
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
    parser.add_argument("--repeat", type=int, default=5, help="timed updates, after two of warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-shapes", action="store_true", help="the shapes of peers.py")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="CPU time of the main thread, for a busy machine; with --threads 1",
    )
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    if args.peer_shapes:
        overrides = [*PEER_SHAPES, *overrides]
    prepare(args.threads)
    clock = time.thread_time if args.processor_time else time.perf_counter
    rows = []
    for name in args.backbones:
        update = Update([f"backbone={name}", *overrides], args.device, clock)
        rows += measure(name, update, args.repeat)
    columns = [
        "backbone",
        "compiled",
        "parameters",
        "ms per update",
        *PHASES,
        "GFLOP",
        "share of peak",
        "peak memory",
    ]
    table = Table(*columns, title=" ".join([f"{args.threads} threads, {args.device}", *overrides]))
    for row in rows:
        table.add_row(
            row["backbone"],
            "-" if row["compile_seconds"] is None else f"in {row['compile_seconds']:.0f} s",
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['seconds'] * 1e3:.0f} [{row['min'] * 1e3:.0f}, {row['max'] * 1e3:.0f}]",
            *(f"{row['phases'][phase] * 1e3:.0f}" for phase in PHASES),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['share']:.0%}",
            f"{row['memory'] / 2**20:.0f} MiB",
        )
    Console(width=140).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(backbone: str, update: Update, repeat: int) -> list[dict]:
    """Return the medians over `repeat` plain updates; with `compile=true` also over compiled ones."""
    peak, flops = gemm_peak(str(update.device), clock=update.clock), update.flops()
    modes = [partial(uncompiled, update.config.algo.compile)]
    if update.config.algo.compile:
        modes.append(nullcontext)
    runs: list[list[tuple[float, dict]]] = [[] for _ in modes]
    for _ in range(1 + repeat):
        for run, mode in zip(runs, modes, strict=True):
            with mode():
                run.append((update(), update.phases))
    return [
        _row(backbone, update, run[1:], flops, peak) | {"compile_seconds": seconds}
        # The first compiled update compiles.
        for run, seconds in zip(runs, [None, *(run[0][0] for run in runs[1:])], strict=True)
    ]


def _row(
    backbone: str, update: Update, run: list[tuple[float, dict]], flops: float, peak: float
) -> dict:
    times, phases = zip(*run, strict=True)
    median = statistics.median(times)
    return {
        "backbone": backbone,
        "parameters": update.parameters,
        "seconds": median,
        "min": min(times),
        "max": max(times),
        "phases": {name: statistics.median(seconds[name] for seconds in phases) for name in PHASES},
        "flops": flops,
        "peak": peak,
        "share": flops / median / peak,
        "memory": peak_memory(update.device),
    }


if __name__ == "__main__":
    main()
