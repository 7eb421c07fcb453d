"""A trial in a second: lives in its folder as a run does, and learns nothing.

    python standin.py key=value ... hydra.run.dir=FOLDER

The return at step s is `(lr + seed) * s`. Variables: STANDIN_STEP, seconds a step; STANDIN_STEPS (10);
STANDIN_FAIL, a seed that fails; STANDIN_HUNGRY, one that runs out of memory; STANDIN_METRIC, the metric
logged; STANDIN_HOLD, a run with less than that for `lr + seed` stays at its half until it is stopped. Every
start adds a line to FOLDER/starts.txt.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from llmdreamer.sweep.member import membership
from llmdreamer.tracking.record import RunFiles, Wanted, save
from llmdreamer.tracking.spool import Spool

STEPS = int(os.environ.get("STANDIN_STEPS", "10"))
HOLD = float(os.environ.get("STANDIN_HOLD", "-inf"))


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder = Path(given.pop("hydra.run.dir").strip("'"))
    with membership(folder):
        live(folder, given)


def live(folder: Path, given: dict[str, str]) -> None:
    saved = folder / "config.yaml"
    found = sorted((folder / "checkpoints").glob("step-*.pt")) if "resume" in given else []
    first = int(found[-1].name[5:17]) if found else 0
    if "resume" in given:
        given = json.loads(saved.read_text())
    saved.write_text(json.dumps(given))
    environment = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
    with open(folder / "starts.txt", "a") as starts:
        starts.write(f"{first} {os.getpid()} {environment[0]} {environment[1]}\n")
    if given.get("seed") == os.environ.get("STANDIN_FAIL"):
        sys.exit("lr is a mess")
    if given.get("seed") == os.environ.get("STANDIN_HUNGRY"):
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        bytearray(2**31)
    wanted = Wanted(
        "", "", "", {"algo.total_steps": STEPS, "env.action_repeat": 1}, {}, time.time()
    )
    save(wanted, RunFiles(folder).wanted)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(143))
    spool = Spool(folder / "metrics.jsonl")
    value = float(given.get("algo.optimizer.lr", 1)) + float(given.get("seed", 0))
    for step in range(first + 1, STEPS + 1):
        time.sleep(float(os.environ.get("STANDIN_STEP", "0")))
        spool.append({os.environ.get("STANDIN_METRIC", "eval/return"): value * step}, step)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"step-{step:012d}-{0:016x}.pt").touch()
        while not stopped and step == STEPS // 2 and value < HOLD:
            time.sleep(0.01)
        if stopped:
            sys.exit(143)
    wanted.status, wanted.ended = "FINISHED", time.time()
    save(wanted, RunFiles(folder).wanted)


main()
