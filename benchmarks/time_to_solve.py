"""How soon CartPole is solved, ours beside SheepRL's dreamer_v3_XS: wall time and steps. Run by hand.

    python benchmarks/time_to_solve.py [--seeds 0 1 2] [--threads 2] [--minutes 60] [--goal 475]
        [--steps 20000] [--folder DIR] [--venv DIR] [--peer OVERRIDE ...] [override ...]

Solved: the first evaluation, of five episodes by the policy's mode, whose mean return is the goal. Ours is
the default run with every evaluation counted in its time; SheepRL's checkpoints, one for each 500 steps, are
evaluated afterwards, so its time has none. A run that does not get there within --minutes or its steps counts
as that long, and is marked. Runs go one after another, each alone on the machine. The same command again goes
on with the next run: what is finished lies in --folder as one JSON file a run.
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

from peers import HERE, installed
from rich.console import Console
from rich.table import Table
from workload import ROOT

EVERY, EPISODES = 500, 5
# SheepRL's own experiment at size XS, as our default is asked: one environment, as many updates a step.
PEER = [
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
    f"checkpoint.every={EVERY}",
    "checkpoint.keep_last=1000000",
]


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    side: str
    seed: int
    solved: bool
    seconds: float  # until solved, or as long as it had
    steps: int  # of the environment, the same
    best: float  # highest evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, for each run")
    parser.add_argument("--goal", type=float, default=475.0)
    parser.add_argument(
        "--steps", type=int, default=20_000, help="SheepRL's budget; ours has its own"
    )
    parser.add_argument("--folder", type=Path, default=Path("time_to_solve"))
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "sheeprl-0.8.4")
    parser.add_argument("--peer", nargs="*", default=[], help="overrides of SheepRL's")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder = given.folder.resolve()
    outcomes = []
    for seed in given.seeds:
        for side in ("ours", "sheeprl"):
            path = given.folder / f"{side}-{seed}.json"
            if not path.exists():
                work = ours if side == "ours" else theirs
                outcome = work(seed, given, overrides)
                path.write_text(json.dumps(asdict(outcome)))
            outcomes.append(Outcome(**json.loads(path.read_text())))
            Console(width=100).print(tabled(outcomes, given.goal))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))


def tabled(outcomes: list[Outcome], goal: float) -> Table:
    table = Table(
        *["side", "seed", "minutes", "environment steps", "best evaluation"],
        title=f"until an evaluation returns {goal:g}",
    )
    for one in outcomes:
        more = "" if one.solved else ">"
        minutes, steps = f"{more}{one.seconds / 60:.1f}", f"{more}{one.steps}"
        table.add_row(one.side, str(one.seed), minutes, steps, f"{one.best:.0f}")
    sides = [[one.seconds for one in outcomes if one.side == side] for side in ("ours", "sheeprl")]
    if all(sides):
        ratio = statistics.median(sides[1]) / statistics.median(sides[0])
        table.caption = f"medians: {ratio:.1f} times as soon"
    return table


def ours(seed: int, given: argparse.Namespace, overrides: list[str]) -> Outcome:
    """The default run, from the command to the evaluation."""
    folder = given.folder / f"ours-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    command = [sys.executable, "run.py", f"seed={seed}", f"threads={given.threads}", *overrides]
    command += [f"hydra.run.dir={folder}", f"tracking.uri=sqlite:///{given.folder}/mlflow.db"]
    begin = time.time()
    seconds = limited(command, ROOT, folder.with_suffix(".log"), given)
    found, steps = [], 0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps = row["env_step"]
        if "eval/return" in row["metrics"]:
            found.append((row["time"] - begin, steps, row["metrics"]["eval/return"]))
    return outcome("ours", seed, found, given.goal, (seconds, steps))


def theirs(seed: int, given: argparse.Namespace, _: list[str]) -> Outcome:
    """SheepRL's run, from the command to the checkpoint; then its checkpoints' returns."""
    python, folder = installed(given.venv), given.folder / f"sheeprl-{seed}"
    command = [str(python), "-m", "sheeprl", *PEER, *given.peer, f"seed={seed}"]
    command += [f"algo.total_steps={given.steps}", f"num_threads={given.threads}"]
    command += [f"log_root={folder}", "root_dir=run", "run_name=run"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begin = time.time()
    seconds = limited(command, folder, folder.with_suffix(".log"), given)
    evaluate = [str(python), str(HERE / "peer_evaluate.py"), str(folder), str(EPISODES)]
    printed = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = []
    for line in printed.splitlines():
        if line.startswith("checkpoint "):
            _, step, made, mean = line.split()
            found.append((float(made) - begin, int(step), float(mean)))
    return outcome("sheeprl", seed, found, given.goal, (seconds, found[-1][1] if found else 0))


def outcome(
    side: str,
    seed: int,
    found: list[tuple[float, int, float]],
    goal: float,
    end: tuple[float, int],
) -> Outcome:
    """Of evaluations (seconds, steps, return), in order, and how long the run was."""
    best = max((mean for _, _, mean in found), default=float("nan"))
    for seconds, steps, mean in found:
        if mean >= goal:
            return Outcome(side, seed, True, seconds, steps, best)
    return Outcome(side, seed, False, *end, best)


def limited(command: list[str], cwd: Path, log: Path, given: argparse.Namespace) -> float:
    """Seconds that a command ran, which is stopped at the time limit; its output goes to `log`."""
    begin = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT
        ) as run,
    ):
        try:
            if code := run.wait(60 * given.minutes):
                raise SystemExit(f"exit {code} of {' '.join(command)}: see {log}")
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)
            run.wait()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
