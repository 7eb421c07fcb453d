"""Dreams that share their past, or have a copy of it each: which is faster at what shape. Run by hand.

    python benchmarks/branches.py [--repeat 5] [--threads 1] [--horizon 15] [--device cpu] [--json FILE]

A row is a backbone's `select` and `step`s alone, without heads, both ways in turns. The context is T. It,
the horizon and the size of a layer's copies are what `AttentionBackbone` chooses by; `chosen` is its choice.
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

# Backbone, B, T (the context, too), starts a sequence.
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
    given = parser.parse_args()
    prepare(given.threads)
    rows = [measure(*shape, given) for shape in SHAPES]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def measure(
    name: str, size: str, batch: int, length: int, starts: int, given: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    cfg = compose(
        [f"backbone={name}", f"model={size}", f"algo.world_model.hf_model.seq_len={length}"]
    )
    backbone = make_backbone(cfg).eval().to(given.device)
    assert isinstance(backbone, AttentionBackbone)
    tokens = torch.randn(batch, length, backbone.width, device=given.device) * backbone.input_rms
    is_first = torch.zeros(batch, length, dtype=torch.bool, device=given.device)
    indices = torch.rand(batch, length).topk(starts).indices.sort().values.to(given.device)
    dreamt = torch.randn(given.horizon, batch * starts, backbone.width, device=given.device)
    with torch.no_grad():
        caches = backbone.observe(tokens, is_first)[1]

    @torch.no_grad()
    def dream() -> float:
        begin = now(given.device)
        cache = backbone.select(caches, indices, given.horizon)
        for token in dreamt:
            _, cache = backbone.step(token, cache)
        return now(given.device) - begin

    times: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(given.repeat + 1):
        for shared, seconds in times.items():
            with choosing(shared):
                took = dream()
            if repeat:  # the first is not counted
                seconds.append(took * 1e3)
    heads, size_of_head = caches.layers[0][0].shape[1], caches.layers[0][0].shape[3]
    mebibytes = batch * starts * length * heads * size_of_head * 2 * 4 / 2**20
    ratios = sorted(a / b for a, b in zip(times[False], times[True], strict=True))
    return {
        "backbone": f"{name} {size}",
        "B": batch,
        "T": length,
        "starts": starts,
        "a copy, MiB a layer": f"{mebibytes:.1f}",
        "copied, ms": f"{statistics.median(times[False]):.1f}",
        "shared, ms": f"{statistics.median(times[True]):.1f}",
        "copied / shared": f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
        "chosen": "shared" if backbone._pays_to_share(caches, indices, given.horizon) else "copied",
    }


@contextmanager
def choosing(shared: bool) -> Iterator[None]:
    with mock.patch.object(AttentionBackbone, "_pays_to_share", return_value=shared):
        yield


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
