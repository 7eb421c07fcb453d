"""Compare how soon CartPole is solved with SheepRL's dreamer_v3_XS, in wall time and steps. Run by hand.

    python benchmarks/time_to_solve.py [--seeds 0 1 2] [--threads 2] [--minutes 60] [--goal 475]
        [--steps 20000] [--folder DIR] [--venv DIR] [--peer OVERRIDE ...] [override ...]

A run solves CartPole at its first evaluation whose mean return reaches the goal; an evaluation is five
episodes with the mode of the policy. Our side is the default run; its time includes all evaluations.
SheepRL's checkpoints, one every 500 steps, are evaluated afterwards, so its time includes none. A run that
does not reach the goal within --minutes or its steps counts with its whole duration, marked `>`. Runs go
one after another. The same command resumes with the next run: each finished run is a JSON file in --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from peers import HERE, ensure_installed
from rich.console import Console
from rich.table import Table
from workload import ROOT

CHECKPOINT_STEPS, EPISODES = 500, 5
# SheepRL's experiment at size XS with our defaults: one environment, the same updates per step.
SHEEPRL_OVERRIDES = [
    "exp=dreamer_v3",
    "algo=dreamer_v3_XS",
    "env=gym",
    "env.id=CartPole-v1",
    "env.num_envs=1",
    "env.sync_env=True",
    "env.capture_video=False",
    "algo.cnn_keys.encoder=[]",
    "algo.cnn_keys.decoder=[]",
    "algo.mlp_keys.encoder=[state]",
    "algo.mlp_keys.decoder=[state]",
    "algo.replay_ratio=0.5",
    "algo.learning_starts=500",
    "algo.run_test=False",
    "fabric.accelerator=cpu",
    "metric.log_level=0",
    "buffer.size=100000",
    "buffer.checkpoint=False",
    f"checkpoint.every={CHECKPOINT_STEPS}",
    "checkpoint.keep_last=1000000",
]


@dataclass(frozen=True)
class Outcome:
    """The result of one run."""

    side: str
    seed: int
    solved: bool
    seconds: float  # until solved, else its duration
    steps: int  # of the environment, likewise
    best: float  # mean return of its best evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit of each run")
    parser.add_argument("--goal", type=float, default=475.0)
    parser.add_argument(
        "--steps", type=int, default=20_000, help="of SheepRL; our default run has its own"
    )
    parser.add_argument("--folder", type=Path, default=Path("time_to_solve"))
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "sheeprl-0.8.4")
    parser.add_argument("--peer", nargs="*", default=[], help="overrides for SheepRL")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.folder = args.folder.resolve()
    outcomes = []
    for seed in args.seeds:
        for side in ("ours", "sheeprl"):
            path = args.folder / f"{side}-{seed}.json"
            if not path.exists():
                run_side = run_ours if side == "ours" else run_sheeprl
                outcome = run_side(seed, args, overrides)
                path.write_text(json.dumps(asdict(outcome)))
            outcomes.append(Outcome(**json.loads(path.read_text())))
            Console(width=100).print(make_table(outcomes, args.goal))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))


def make_table(outcomes: list[Outcome], goal: float) -> Table:
    table = Table(
        *["side", "seed", "minutes", "environment steps", "best evaluation"],
        title=f"until an evaluation returns {goal:g}",
    )
    for run in outcomes:
        prefix = "" if run.solved else ">"
        minutes, steps = f"{prefix}{run.seconds / 60:.1f}", f"{prefix}{run.steps}"
        table.add_row(run.side, str(run.seed), minutes, steps, f"{run.best:.0f}")
    sides = [[run.seconds for run in outcomes if run.side == side] for side in ("ours", "sheeprl")]
    if all(sides):
        ratio = statistics.median(sides[1]) / statistics.median(sides[0])
        table.caption = f"ratio of the medians, SheepRL / ours: {ratio:.1f}"
    return table


def run_ours(seed: int, args: argparse.Namespace, overrides: list[str]) -> Outcome:
    """Run our side; time it from the command to the evaluation."""
    folder = args.folder / f"ours-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was interrupted
    command = [sys.executable, "run.py", f"seed={seed}", f"threads={args.threads}", *overrides]
    command += [f"hydra.run.dir={folder}", f"tracking.uri=sqlite:///{args.folder}/mlflow.db"]
    begin = time.time()
    seconds = run_with_limit(command, ROOT, folder.with_suffix(".log"), args)
    evaluations, steps = [], 0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps = record["env_step"]
        if "eval/return" in record["metrics"]:
            evaluations.append((record["time"] - begin, steps, record["metrics"]["eval/return"]))
    return make_outcome("ours", seed, evaluations, args.goal, (seconds, steps))


def run_sheeprl(seed: int, args: argparse.Namespace, _: list[str]) -> Outcome:
    """Run SheepRL; time it from the command to the checkpoint. Then evaluate its checkpoints."""
    python, folder = ensure_installed(args.venv), args.folder / f"sheeprl-{seed}"
    command = [str(python), "-m", "sheeprl", *SHEEPRL_OVERRIDES, *args.peer, f"seed={seed}"]
    command += [f"algo.total_steps={args.steps}", f"num_threads={args.threads}"]
    command += [f"log_root={folder}", "root_dir=run", "run_name=run"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begin = time.time()
    seconds = run_with_limit(command, folder, folder.with_suffix(".log"), args)
    evaluate = [str(python), str(HERE / "peer_evaluate.py"), str(folder), str(EPISODES)]
    output = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, text=True).stdout
    evaluations = []
    for line in output.splitlines():
        if line.startswith("checkpoint "):
            _, step, saved_at, mean = line.split()
            evaluations.append((float(saved_at) - begin, int(step), float(mean)))
    return make_outcome(
        "sheeprl", seed, evaluations, args.goal, (seconds, evaluations[-1][1] if evaluations else 0)
    )


def make_outcome(
    side: str,
    seed: int,
    evaluations: list[tuple[float, int, float]],
    goal: float,
    end: tuple[float, int],
) -> Outcome:
    """Return the first evaluation (seconds, steps, return) to reach the goal; else the run's `end`."""
    best = max((mean for _, _, mean in evaluations), default=float("nan"))
    for seconds, steps, mean in evaluations:
        if mean >= goal:
            return Outcome(side, seed, True, seconds, steps, best)
    return Outcome(side, seed, False, *end, best)


def run_with_limit(command: list[str], cwd: Path, log: Path, args: argparse.Namespace) -> float:
    """Run a command, stop it at the time limit, and return its seconds; its output goes to `log`."""
    begin = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT
        ) as run,
    ):
        try:
            if code := run.wait(60 * args.minutes):
                raise SystemExit(f"{' '.join(command)} exited with {code}; see {log}")
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)
            run.wait()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
