"""The lines that a run prints at its start and at its end, and the plot of its returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmdreamer.config import arm
from llmdreamer.tracking.spool import read_metrics

if TYPE_CHECKING:
    from llmdreamer.config import Config
    from llmdreamer.evaluation.episodes import Evaluation


def plot_returns(run_dir: Path) -> Path:
    """Plot training and evaluation returns against environment steps into `returns.png`."""
    from matplotlib.figure import Figure

    episodes: list[tuple[int, float]] = []
    evaluations: list[tuple[int, float]] = []
    for row in read_metrics(run_dir / "metrics.jsonl"):
        for key, points in (("episode/return", episodes), ("eval/return", evaluations)):
            if key in row.metrics:
                points.append((row.env_step, row.metrics[key]))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    if episodes:
        axes.plot(
            *zip(*episodes, strict=True), ".", color="#999999", ms=3, label="training episode"
        )
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", color="#0072B2", ms=4, label="evaluation")
    axes.set(xlabel="environment steps", ylabel="episode return")
    axes.spines[["top", "right"]].set_visible(False)
    if episodes or evaluations:
        axes.legend(frameon=False)
    path = run_dir / "returns.png"
    figure.savefig(path, dpi=150)
    return path


@dataclass(frozen=True)
class BestPolicyResult:
    """Evaluation of the best policy of a run."""

    evaluation: Evaluation  # on episodes that were not used for the selection
    env_step: int  # when the policy was saved


def opening(
    config: Config,
    run_dir: Path,
    counts: Mapping[str, float],
    device: torch.device,
    total_updates: int,
) -> str:
    """Return the first lines of a run.

    Args:
        counts: numbers of parameters, of `Trainer.counts`.
        total_updates: updates of the whole run.
    """
    algo = config.algo
    where = str(device)
    if device.type == "cpu":
        where = f"cpu, threads={torch.get_num_threads()}"
    lines = [
        _line(
            "arm", f"{arm(config)}: {config.backbone.name}, size {config.size}, on {config.env.id}"
        ),
        _line(
            "parameters",
            f"{_millions(counts['parameters/total'])}, "
            f"of which {_millions(counts['parameters/trainable'])} are trained",
        ),
        _line("device", f"{where}, {algo.precision}"),
        _line(
            "budget",
            f"{algo.total_steps} policy steps ({algo.learning_starts} of them random), "
            f"{total_updates} updates",
        ),
        _line("run", str(run_dir)),
    ]
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    """Return a line with its name in a column of its own."""
    return f"{name:<19}{text}"


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f}M"


def fell_behind(last: Evaluation, best: Evaluation) -> bool:
    """Return True if the last policy is worse than the best one, beyond chance and by a fifth.

    Beyond chance: the means differ by more than three standard errors of their difference.
    Both thresholds are ours. Evaluations of a single episode have deviation 0, so only the fifth counts.
    """
    error = math.sqrt(last.deviation**2 / len(last.returns) + best.deviation**2 / len(best.returns))
    gap = best.mean - last.mean
    return gap > 3 * error and gap > 0.2 * abs(best.mean)


def summary(
    config: Config,
    run_dir: Path,
    result: Evaluation,
    best: BestPolicyResult | None,
    checkpoint: str,
    ui_command: str,
) -> str:
    """Return the last lines of a run.

    Args:
        checkpoint: the checkpoint to resume from, in words (`Checkpoints.describe`).
    """
    acting = "mode" if config.eval.greedy else "sampled"
    episodes = len(result.returns)
    lines = [
        _line("last policy", f"{result} (mean ± sd of {episodes} episodes, actions: {acting})")
    ]
    if best is not None:
        lines.append(
            _line(
                "best policy",
                f"{best.evaluation} "
                f"(env step {best.env_step}, on {len(best.evaluation.returns)} other episodes)",
            )
        )
        if fell_behind(result, best.evaluation):
            lines.append(
                _line(
                    "",
                    "The last policy is worse than the best one, which is in best/:"
                    " commands take --best.",
                )
            )
    lines += [
        _line("run", str(run_dir)),
        _line("checkpoint", checkpoint),
    ]
    # A file is missing if it was not requested or could not be made.
    for name, path in (("plot", run_dir / "returns.png"), ("video", run_dir / "policy.gif")):
        if path.exists():
            lines.append(_line(name, str(path)))
    return "\n".join([*lines, _line("MLflow UI", ui_command)])
