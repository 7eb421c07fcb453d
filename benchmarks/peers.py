"""Our gradient step beside SheepRL's at SheepRL's own XS shapes, in turns. Run by hand.

    python benchmarks/peers.py [--backbones gru gpt2 ...] [--venv DIR] [--threads 2] [--rounds 7]
        [--minutes 10] [--peer OVERRIDE ...] [override ...]

B 16, L 64, all 1024 starts, H 15, single precision, CartPole's vectors, random numbers. SheepRL is
installed in an environment of its own (--venv), made on first use. Both sides take one step in turn, so
that what else the machine does hits both; the ratio is of the medians, its range of the single rounds. Each
backbone has its part of --minutes, installing not counted: then it has fewer rounds, but three. Overrides of
SheepRL's: `--peer algo.compile.enabled=True` compiles its losses, for some minutes, in the round not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from workload import PEER_BATCH, PEER_LENGTH, PEER_SHAPES, Update, spread

from llmdreamer.utils.device import prepare

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ["torch==2.13.0", "sheeprl==0.8.4"]
LEAST = 3  # rounds of a backbone, however long they take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "smollm2", "mamba"])
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "sheeprl-0.8.4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="after one that is not counted")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all backbones together")
    parser.add_argument("--peer", nargs="+", default=[], help="overrides of SheepRL's")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    prepare(given.threads)
    python = installed(given.venv)
    rows = [against(name, overrides, python, given) for name in given.backbones]
    table = Table(
        *["backbone", "parameters, ours and theirs", "ours, s", "SheepRL, s", "times as fast"],
        title=f"a gradient step, {given.threads} threads: median [least, most]",
    )
    for row in rows:
        table.add_row(
            row["backbone"],
            f"{row['parameters'] / 1e6:.2f}M, {row['their_parameters'] / 1e6:.2f}M",
            spread(row["ours"]),
            spread(row["theirs"]),
            spread(row["ratios"]),
        )
    Console(width=120).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def installed(venv: Path) -> Path:
    """The Python of an environment that has SheepRL."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def against(backbone: str, overrides: list[str], python: Path, given: argparse.Namespace) -> dict:
    until = time.monotonic() + 60 * given.minutes / len(given.backbones)
    update = Update([*PEER_SHAPES, f"backbone={backbone}", *overrides])
    command = [
        str(python),
        str(HERE / "peer_sheeprl.py"),
        str(given.threads),
        str(PEER_BATCH),
        str(PEER_LENGTH),
        *given.peer,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        ours, theirs = [], []
        parameters = int(answer(peer, "parameters"))
        for taken in range(1 + given.rounds):
            if taken > LEAST and time.monotonic() > until:
                break
            ours.append(update())
            peer.stdin.write("\n")
            peer.stdin.flush()
            theirs.append(float(answer(peer)))
        peer.stdin.close()
    return {
        "backbone": backbone,
        "parameters": update.parameters,
        "their_parameters": parameters,
        "ours": ours[1:],
        "theirs": theirs[1:],
        "ratios": [b / a for a, b in zip(ours[1:], theirs[1:], strict=True)],
        "ratio": statistics.median(theirs[1:]) / statistics.median(ours[1:]),
    }


def answer(peer: subprocess.Popen[str], name: str | None = None) -> str:
    """The peer's next number; what its libraries print besides is passed over."""
    assert peer.stdout is not None
    for line in peer.stdout:
        words = line.split()
        if name is None and len(words) == 1 and words[0].replace(".", "").isdigit():
            return words[0]
        if name is not None and len(words) == 2 and words[0] == name:
            return words[1]
    raise SystemExit("SheepRL's process ended: its error is above")


if __name__ == "__main__":
    main()
