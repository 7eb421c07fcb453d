"""What an update's time is made of: kinds of operations, by the part that calls them. Run by hand.

    python benchmarks/breakdown.py [--backbone gpt2] [--repeat 5] [--json FILE] [override ...]

One thread of a CPU, whose clock is torch's profiler: it adds to each operation what watching it costs, so the
table's milliseconds are scaled to what the same updates took unwatched, by one factor for all.
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

PART = "part: "
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "conv"),
    "attention": ("attention",),
    "softmax": ("softmax", "logsumexp"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid", "tanh", "softplus"),
    "lookups": ("index", "gather", "scatter", "embedding", "searchsorted"),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_", "contiguous"),
}
"""Of an operation's name; the first that matches. Matrix products have exactly those names."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="gpt2")
    parser.add_argument(
        "--repeat", type=int, default=5, help="updates of each kind, after two unseen"
    )
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    prepare(1)
    update = Update([f"backbone={given.backbone}", *overrides], "cpu", time.thread_time)
    for _ in range(2):
        update()
    unwatched = statistics.median(update() for _ in range(given.repeat)) * 1e3
    mark_parts(update)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(given.repeat):
            update.learner.update(update.batch)
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    count: dict[str, int] = defaultdict(int)
    for event in watched.events() or []:
        part = part_of(event)
        if not event.name.startswith(PART):
            spent[part][kind_of(event.name)] += event.self_cpu_time_total
            count[part] += is_called_by_us(event)
    total = sum(sum(kinds.values()) for kinds in spent.values())
    factor = unwatched / total
    report(spent, count, factor, unwatched, given)


def mark_parts(update: Update) -> None:
    """Name what `Learner.update` calls, for the profiler."""
    agent, optimizer = update.learner.agent, update.learner.optimizer
    named: list[tuple[Any, str, str]] = [
        (agent.world_model, "loss", "world model, forward"),
        (agent.world_model, "start_imagination", "starts"),
        (step, "imagine", "imagination"),
        (agent.behavior, "imagination_loss", "actor and critic on imagination"),
        (agent.behavior, "replay_loss", "critic on replay"),
        (optimizer, "step", "backward"),
        (optimizer.inner, "step", "optimiser"),
        (agent.behavior, "update_slow_critic", "optimiser"),
    ]
    for owner, name, part in named:
        setattr(owner, name, marked(getattr(owner, name), part))


def marked(call: Callable[..., Any], part: str) -> Callable[..., Any]:
    def within(*args: Any, **kwargs: Any) -> Any:
        with record_function(PART + part):
            return call(*args, **kwargs)

    return within


def part_of(event: FunctionEvent) -> str:
    """The innermost part that the operation was called in."""
    parent = event
    while parent is not None:
        if parent.name.startswith(PART):
            return parent.name.removeprefix(PART)
        parent = parent.cpu_parent
    return "between them"


def is_called_by_us(event: FunctionEvent) -> bool:
    """Whether it is an operation that no other one is made of."""
    parent = event.cpu_parent
    within = parent is not None and parent.name.startswith("aten::")
    return event.name.startswith("aten::") and not within


def kind_of(name: str) -> str:
    operation = name.removeprefix("aten::").removeprefix("mkldnn_")
    for kind, parts in KINDS.items():
        exact = kind == "products"
        if any(operation == part if exact else part in operation for part in parts):
            return kind
    return "other"


def report(
    spent: dict[str, dict[str, float]],
    count: dict[str, int],
    factor: float,
    unwatched: float,
    given: argparse.Namespace,
) -> None:
    kinds = [*KINDS, "other"]
    table = Table("ms", "operations", *kinds, "in all", "share")
    for part, by_kind in spent.items():
        values = [by_kind[kind] * factor for kind in kinds]
        cells = [f"{value:.1f}" if value >= 0.05 else "" for value in values]
        share = sum(values) / unwatched
        table.add_row(
            part,
            str(round(count[part] / given.repeat)),
            *cells,
            f"{sum(values):.1f}",
            f"{share:.0%}",
        )
    sums = [sum(by_kind[kind] for by_kind in spent.values()) * factor for kind in kinds]
    operations = str(round(sum(count.values()) / given.repeat))
    table.add_row("in all", operations, *(f"{value:.1f}" for value in sums), f"{unwatched:.1f}", "")
    table.add_row("share", "", *(f"{value / unwatched:.0%}" for value in sums), "", "")
    Console().print(table)
    if given.json is not None:
        rows = {
            part: {k: v * factor for k, v in by_kind.items()} for part, by_kind in spent.items()
        }
        given.json.write_text(json.dumps({"ms": unwatched, "parts": rows}, indent=1))


if __name__ == "__main__":
    main()
