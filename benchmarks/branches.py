"""Compare two ways to imagine: with a shared prefix, or with a copy of the cache for each start.

    python benchmarks/branches.py [--repeat 5] [--threads 1] [--horizon 15] [--device cpu] [--json FILE]

Run by hand. Each row times a backbone's `select` and `step` without heads, both ways alternating. The
context is T. `AttentionBackbone` chooses by the context, the horizon and the size of a layer's copies;
`chosen` is its choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from workload import compose

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.attention import AttentionBackbone
from llmdreamer.utils.device import prepare

# Backbone, size, B, T (also the context), starts per sequence.
SHAPES = [
    *[("gpt2", "XS", 16, 32, n) for n in (1, 2, 4, 8, 16, 32)],
    *[("smollm2", "XS", 16, 32, n) for n in (2, 8, 32)],
    *[("gpt2", "XS", 4, 16, n) for n in (1, 4, 16)],
    *[("gpt2", "XS", 16, 64, n) for n in (1, 2, 8, 64)],
    *[("gpt2", "S", 4, 16, n) for n in (4, 16)],
    ("gpt2", "S", 4, 64, 4),
    ("gpt2", "S", 4, 64, 16),
    ("smollm2", "S", 4, 64, 4),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    prepare(args.threads)
    rows = [measure(*shape, args) for shape in SHAPES]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(
    name: str, size: str, batch: int, length: int, starts: int, args: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    cfg = compose(
        [f"backbone={name}", f"model={size}", f"algo.world_model.hf_model.seq_len={length}"]
    )
    backbone = make_backbone(cfg).eval().to(args.device)
    assert isinstance(backbone, AttentionBackbone)
    tokens = torch.randn(batch, length, backbone.width, device=args.device) * backbone.input_rms
    is_first = torch.zeros(batch, length, dtype=torch.bool, device=args.device)
    indices = torch.rand(batch, length).topk(starts).indices.sort().values.to(args.device)
    imagined_tokens = torch.randn(args.horizon, batch * starts, backbone.width, device=args.device)
    with torch.no_grad():
        caches = backbone.observe(tokens, is_first)[1]

    @torch.no_grad()
    def imagine() -> float:
        begin = now(args.device)
        cache = backbone.select(caches, indices, args.horizon)
        for token in imagined_tokens:
            _, cache = backbone.step(token, cache)
        return now(args.device) - begin

    times: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(args.repeat + 1):
        for shared, seconds in times.items():
            with force_sharing(shared):
                elapsed = imagine()
            if repeat:  # the first one is warm-up
                seconds.append(elapsed * 1e3)
    heads, head_size = caches.layers[0][0].shape[1], caches.layers[0][0].shape[3]
    mebibytes = batch * starts * length * heads * head_size * 2 * 4 / 2**20
    ratios = sorted(a / b for a, b in zip(times[False], times[True], strict=True))
    return {
        "backbone": f"{name} {size}",
        "B": batch,
        "T": length,
        "starts": starts,
        "copies, MiB per layer": f"{mebibytes:.1f}",
        "copied, ms": f"{statistics.median(times[False]):.1f}",
        "shared, ms": f"{statistics.median(times[True]):.1f}",
        "copied / shared": f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
        "chosen": "shared"
        if backbone._should_share_prefix(caches, indices, args.horizon)
        else "copied",
    }


@contextmanager
def force_sharing(shared: bool) -> Iterator[None]:
    with mock.patch.object(AttentionBackbone, "_should_share_prefix", return_value=shared):
        yield


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
