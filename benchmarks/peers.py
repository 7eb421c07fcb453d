"""Compare the time of a gradient step with SheepRL's, at SheepRL's XS shapes. Run by hand.

    python benchmarks/peers.py [--backbones gru gpt2 ...] [--venv DIR] [--threads 2] [--rounds 7]
        [--minutes 10] [--peer OVERRIDE ...] [override ...]

B 16, T 64, all 1024 starts, H 15, single precision, CartPole's vectors, random numbers. SheepRL is
installed in a separate venv (--venv) on first use. The two sides alternate step by step, so that other
load on the machine affects both. The ratio is that of the medians, its range that of the single rounds.
Each backbone gets an equal part of --minutes, not counting the installation, but at least three rounds.
`--peer` passes overrides to SheepRL: `--peer algo.compile.enabled=True` compiles its losses, which takes
some minutes in the warm-up round.
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
MIN_ROUNDS = 3  # of each backbone, also beyond the time limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "smollm2", "mamba"])
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "sheeprl-0.8.4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one of warm-up")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all backbones together")
    parser.add_argument("--peer", nargs="+", default=[], help="overrides for SheepRL")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    prepare(args.threads)
    python = ensure_installed(args.venv)
    rows = [compare(name, overrides, python, args) for name in args.backbones]
    table = Table(
        *["backbone", "parameters, ours and SheepRL", "ours, s", "SheepRL, s", "SheepRL / ours"],
        title=f"a gradient step, {args.threads} threads: median [min, max]",
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
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def ensure_installed(venv: Path) -> Path:
    """Return the Python of a venv with SheepRL; create the venv if needed."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def compare(backbone: str, overrides: list[str], python: Path, args: argparse.Namespace) -> dict:
    deadline = time.monotonic() + 60 * args.minutes / len(args.backbones)
    update = Update([*PEER_SHAPES, f"backbone={backbone}", *overrides])
    command = [
        str(python),
        str(HERE / "peer_sheeprl.py"),
        str(args.threads),
        str(PEER_BATCH),
        str(PEER_LENGTH),
        *args.peer,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        ours, theirs = [], []
        parameters = int(read_number(peer, "parameters"))
        for round_number in range(1 + args.rounds):
            if round_number > MIN_ROUNDS and time.monotonic() > deadline:
                break
            ours.append(update())
            peer.stdin.write("\n")
            peer.stdin.flush()
            theirs.append(float(read_number(peer)))
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


def read_number(peer: subprocess.Popen[str], name: str | None = None) -> str:
    """Read the peer's next number, or the one after `name`; skip the other lines that it prints."""
    assert peer.stdout is not None
    for line in peer.stdout:
        words = line.split()
        if name is None and len(words) == 1 and words[0].replace(".", "").isdigit():
            return words[0]
        if name is not None and len(words) == 2 and words[0] == name:
            return words[1]
    raise SystemExit("SheepRL's process ended; its error is printed above")


if __name__ == "__main__":
    main()
