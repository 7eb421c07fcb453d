"""Break the time of an update down by stage and kind of operation. Run by hand.

    python benchmarks/breakdown.py [--backbone gpt2] [--repeat 5] [--json FILE] [override ...]

One CPU thread, timed with torch's profiler. The profiler slows every operation down, so the table's
milliseconds are scaled, by one factor, to the time of the same updates without the profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from workload import Update

from llmdreamer.training import step
from llmdreamer.utils.device import prepare

STAGE_PREFIX = "stage: "
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "conv"),
    "attention": ("attention",),
    "softmax": ("softmax", "logsumexp"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid", "tanh", "softplus"),
    "lookups": ("index", "gather", "scatter", "embedding", "searchsorted"),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_", "contiguous"),
}
"""Parts of operation names; the first match counts. For matrix products the whole name must match."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="gpt2")
    parser.add_argument(
        "--repeat", type=int, default=5, help="updates with and without the profiler"
    )
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    prepare(1)
    update = Update([f"backbone={args.backbone}", *overrides], "cpu", time.thread_time)
    for _ in range(2):
        update()
    unprofiled = statistics.median(update() for _ in range(args.repeat)) * 1e3
    mark_stages(update)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(args.repeat):
            update.learner.update(update.batch)
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    count: dict[str, int] = defaultdict(int)
    for event in profiler.events() or []:
        stage = stage_of(event)
        if not event.name.startswith(STAGE_PREFIX):
            spent[stage][kind_of(event.name)] += event.self_cpu_time_total
            count[stage] += is_top_level(event)
    total = sum(sum(kinds.values()) for kinds in spent.values())
    factor = unprofiled / total
    report(spent, count, factor, unprofiled, args)


def mark_stages(update: Update) -> None:
    """Mark the calls of `Learner.update` for the profiler."""
    agent, optimizer = update.learner.agent, update.learner.optimizer
    named: list[tuple[Any, str, str]] = [
        (agent.world_model, "loss", "world model, forward"),
        (agent.world_model, "start_imagination", "starts"),
        (step, "imagine", "imagination"),
        (agent.behavior, "imagination_loss", "actor and critic on imagination"),
        (agent.behavior, "replay_loss", "critic on replay"),
        (optimizer, "step", "backward"),
        (optimizer.inner, "step", "optimizer"),
        (agent.behavior, "update_slow_critic", "optimizer"),
    ]
    for owner, name, stage in named:
        setattr(owner, name, recorded(getattr(owner, name), stage))


def recorded(call: Callable[..., Any], stage: str) -> Callable[..., Any]:
    def within(*args: Any, **kwargs: Any) -> Any:
        with record_function(STAGE_PREFIX + stage):
            return call(*args, **kwargs)

    return within


def stage_of(event: FunctionEvent) -> str:
    """Return the innermost stage that contains the operation."""
    parent = event
    while parent is not None:
        if parent.name.startswith(STAGE_PREFIX):
            return parent.name.removeprefix(STAGE_PREFIX)
        parent = parent.cpu_parent
    return "between stages"


def is_top_level(event: FunctionEvent) -> bool:
    """Return True if the operation is not part of another operation."""
    parent = event.cpu_parent
    within = parent is not None and parent.name.startswith("aten::")
    return event.name.startswith("aten::") and not within


def kind_of(name: str) -> str:
    operation = name.removeprefix("aten::").removeprefix("mkldnn_")
    for kind, words in KINDS.items():
        exact = kind == "products"
        if any(operation == word if exact else word in operation for word in words):
            return kind
    return "other"


def report(
    spent: dict[str, dict[str, float]],
    count: dict[str, int],
    factor: float,
    unprofiled: float,
    args: argparse.Namespace,
) -> None:
    kinds = [*KINDS, "other"]
    table = Table("ms", "operations", *kinds, "total", "share")
    for stage, by_kind in spent.items():
        values = [by_kind[kind] * factor for kind in kinds]
        cells = [f"{value:.1f}" if value >= 0.05 else "" for value in values]
        share = sum(values) / unprofiled
        table.add_row(
            stage,
            str(round(count[stage] / args.repeat)),
            *cells,
            f"{sum(values):.1f}",
            f"{share:.0%}",
        )
    sums = [sum(by_kind[kind] for by_kind in spent.values()) * factor for kind in kinds]
    operations = str(round(sum(count.values()) / args.repeat))
    table.add_row("total", operations, *(f"{value:.1f}" for value in sums), f"{unprofiled:.1f}", "")
    table.add_row("share", "", *(f"{value / unprofiled:.0%}" for value in sums), "", "")
    Console().print(table)
    if args.json is not None:
        rows = {
            stage: {k: v * factor for k, v in by_kind.items()} for stage, by_kind in spent.items()
        }
        args.json.write_text(json.dumps({"ms": unprofiled, "stages": rows}, indent=1))


if __name__ == "__main__":
    main()
