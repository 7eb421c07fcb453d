"""`llmdreamer imagine RUN`: open-loop prediction error of a run's world model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.cli.common import check_positive, check_seed, make_parser, run_command
from llmdreamer.config import read_run_config
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config
    from llmdreamer.evaluation.open_loop_record import OpenLoop


def main(argv: list[str] | None = None) -> int:
    """Measure and plot open-loop prediction; return 0, or 2 after a one-line error."""
    parser = make_parser("imagine", __doc__)
    parser.add_argument("--context", type=int, help="observed steps (default: fills a sequence)")
    parser.add_argument("--horizon", type=int, help="imagined steps (default: algo.horizon)")
    parser.add_argument(
        "--windows", type=int, default=32, help="windows of experience (default 32)"
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="trajectories per window (default 8)"
    )
    parser.add_argument("--seed", type=int, help="of episodes and sampling (default: the run's)")
    parser.add_argument(
        "--replay",
        action="store_true",
        help="windows from the run's replay instead of new episodes",
    )
    parser.add_argument("--out", type=Path, help="folder (default: RUN/imagined)")
    args = parser.parse_args(argv)
    return run_command(args, _imagine)


def _imagine(args: argparse.Namespace) -> str:
    check_positive(args, "context", "horizon", "windows", "samples")
    check_seed(args.seed)
    config = read_run_config(args.run_dir, args.trust)
    # Imported late, so that the errors above appear without loading torch.
    from llmdreamer.analysis.open_loop import all_sections
    from llmdreamer.analysis.section import save_section
    from llmdreamer.evaluation.open_loop_record import FILE

    found = _measure(args, config)
    folder = args.out or args.run_dir / "imagined"
    try:
        sections = all_sections(found)
        for section in sections:
            save_section(section, folder)
        found.save(folder / FILE)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error
    (table,) = sections[0].tables
    return "\n".join([table.to_string(index=False), *sections[0].text, f"pictures  {folder}"])


def _measure(args: argparse.Namespace, config: Config) -> OpenLoop:
    from llmdreamer.agent.restore import restore_agent
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.evaluation.windows import (
        default_context,
        fresh_windows,
        measure_in_eval_mode,
        replayed_windows,
    )
    from llmdreamer.utils.device import prepare
    from llmdreamer.utils.noise import Noise
    from llmdreamer.utils.seeds import SeedOffset

    prepare(config.threads)
    agent = restore_agent(config, Checkpoints(args.run_dir / "checkpoints", config.checkpoint.keep))
    horizon = args.horizon or config.algo.horizon
    context = args.context or default_context(config.algo, horizon)
    length, seed = context + horizon, config.seed if args.seed is None else args.seed
    noise = Noise(seed + SeedOffset.OPEN_LOOP, agent.device)
    batch = (
        replayed_windows(agent, config, args.run_dir, args.windows, length, seed)
        if args.replay
        else fresh_windows(agent, config, args.windows, length, seed, noise)
    )
    return measure_in_eval_mode(agent, batch, context, args.samples, noise)


if __name__ == "__main__":
    sys.exit(main())
