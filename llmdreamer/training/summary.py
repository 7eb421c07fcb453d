"""What a run shows at its end: the curve of its returns, and a few lines that say where things lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.tracking.spool import read_metrics

if TYPE_CHECKING:
    from llmdreamer.config import Config
    from llmdreamer.evaluation.episodes import Evaluation


def plot_returns(run_dir: Path) -> Path:
    """Draw training and evaluation returns by environment step into `returns.png`."""
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
class Best:
    """What the best policy of a run is worth."""

    evaluation: Evaluation  # of episodes that it was not chosen by
    env_step: int  # at which it was


def summary(
    config: Config,
    run_dir: Path,
    result: Evaluation,
    best: Best | None,
    checkpoint: str,
    ui_command: str,
) -> str:
    """The last lines of a run.

    Args:
        checkpoint: where to go on from, in words (`Checkpoints.told`).
    """
    acting = "mode" if config.eval.greedy else "sampled"
    episodes = len(result.returns)
    lines = [f"evaluation return  {result} (mean ± sd of {episodes} episodes, policy {acting})"]
    if best is not None:
        lines.append(
            f"best policy        {best.evaluation} "
            f"(of env step {best.env_step}, on {len(best.evaluation.returns)} other episodes)"
        )
    lines += [
        f"run                {run_dir}",
        f"checkpoint         {checkpoint}",
        f"plot               {run_dir / 'returns.png'}",
    ]
    if config.eval.video:
        lines.append(f"video              {run_dir / 'policy.gif'}")
    return "\n".join([*lines, f"MLflow UI          {ui_command}"])
