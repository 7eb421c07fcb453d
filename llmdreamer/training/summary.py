"""Summary of a finished run: the plot of its returns, and the lines that it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    lines = [f"evaluation return  {result} (mean ± sd of {episodes} episodes, policy {acting})"]
    if best is not None:
        lines.append(
            f"best policy        {best.evaluation} "
            f"(env step {best.env_step}, on {len(best.evaluation.returns)} other episodes)"
        )
    lines += [
        f"run                {run_dir}",
        f"checkpoint         {checkpoint}",
    ]
    # Both are missing if they could not be made.
    for name, path in (("plot", run_dir / "returns.png"), ("video", run_dir / "policy.gif")):
        if path.exists():
            lines.append(f"{name:<19}{path}")
    return "\n".join([*lines, f"MLflow UI          {ui_command}"])
