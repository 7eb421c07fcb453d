"""`llmdreamer diagnose RUN`: what a run's agent predicts beside the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmdreamer.cli.common import (
    POLICY_FOLDERS,
    add_best,
    check_positive,
    check_seed,
    make_parser,
    run_command,
)
from llmdreamer.config import read_run_config
from llmdreamer.utils.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Compare predicted and true ends, values and advantages; return 0, or 2 after a one-line error."""
    parser = make_parser("diagnose", __doc__)
    parser.add_argument("--episodes", type=int, default=16, help="for ends and values (default 16)")
    parser.add_argument(
        "--states", type=int, default=8, help="states of one episode, for advantages (default 8)"
    )
    parser.add_argument(
        "--branches",
        type=int,
        default=64,
        help="true and imagined trajectories of each action in each state, at least 2 (default 64)",
    )
    parser.add_argument("--seed", type=int, help="of episodes and sampling (default: the run's)")
    add_best(parser)
    parser.add_argument("--out", type=Path, help="folder (default: RUN/diagnosis)")
    args = parser.parse_args(argv)
    return run_command(args, _diagnose)


def _diagnose(args: argparse.Namespace) -> str:
    check_positive(args, "episodes", "states")
    check_seed(args.seed)
    if args.branches < 2:
        raise ConfigError(f"--branches {args.branches}: must be >= 2")
    config = read_run_config(args.run_dir, args.trust)
    # Imported late, so that the errors above appear without loading torch.
    from llmdreamer.agent.restore import restore_agent
    from llmdreamer.analysis.diagnosis import all_sections
    from llmdreamer.analysis.section import save_section
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.evaluation.diagnosis import diagnose
    from llmdreamer.utils.device import prepare

    prepare(config.threads)
    policy = args.run_dir / POLICY_FOLDERS[args.best]
    agent = restore_agent(config, Checkpoints(policy, config.checkpoint.keep))
    seed = config.seed if args.seed is None else args.seed
    sections = all_sections(
        diagnose(agent, config, args.episodes, args.states, args.branches, seed)
    )
    folder = args.out or args.run_dir / "diagnosis"
    lines = []
    try:
        for section in sections:
            save_section(section, folder)
            tables = [table.to_string(index=False) for table in section.tables]
            lines += [section.title, *section.text, *tables, ""]
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error
    return "\n".join([*lines, f"files  {folder}"])


if __name__ == "__main__":
    sys.exit(main())
