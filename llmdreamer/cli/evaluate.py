"""`llmdreamer evaluate RUN`: mean return of a run's policy."""

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
from llmdreamer.utils.output import print_line


def main(argv: list[str] | None = None) -> int:
    """Evaluate the newest checkpoint or the best policy; return 0, or 2 after a one-line error."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("--episodes", type=int, default=20, help="at least 1 (default 20)")
    parser.add_argument("--seed", type=int, help="of the episodes (default: the run's)")
    add_best(parser)
    parser.add_argument(
        "--greedy",
        action=argparse.BooleanOptionalAction,
        help="take modes of latent and action, or sample both (default: the run's eval.greedy)",
    )
    parser.add_argument("--video", type=Path, metavar="FILE.gif", help="also record one episode")
    args = parser.parse_args(argv)
    return run_command(args, _evaluate)


def _evaluate(args: argparse.Namespace) -> str:
    check_positive(args, "episodes")
    check_seed(args.seed)
    config = read_run_config(args.run_dir, args.trust)
    # Imported late, so that the errors above appear without loading torch.
    from llmdreamer.agent.restore import restore_agent
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.evaluation.episodes import check_video, evaluate, record_video
    from llmdreamer.utils.device import prepare

    prepare(config.threads)
    folder = args.run_dir / POLICY_FOLDERS[args.best]
    agent = restore_agent(config, Checkpoints(folder, config.checkpoint.keep))
    seed = config.seed if args.seed is None else args.seed
    if args.video is not None:
        check_video(config.env, seed)
    greedy = config.eval.greedy if args.greedy is None else args.greedy
    result = evaluate(agent, config.env, args.episodes, seed, greedy=greedy)
    line = f"return {result} (mean ± sd of {args.episodes} episodes)"
    if args.video is None:
        return line
    print_line(line)  # also if the video fails
    return f"video  {record_video(agent, config.env, seed, args.video, greedy=greedy)}"


if __name__ == "__main__":
    sys.exit(main())
