"""`llmdreamer export RUN DIR`: a run's weights as files that transformers and peft load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmdreamer.cli.common import POLICY_FOLDERS, add_best, make_parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Export the last or the best policy; return 0, or 2 after a one-line error."""
    parser = make_parser("export", __doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="new directory")
    add_best(parser)
    parser.add_argument(
        "--push-to-hub", metavar="REPOSITORY", help="also upload to this repository of the hub"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    args = parser.parse_args(argv)
    return run_command(args, _export)


def _export(args: argparse.Namespace) -> str:
    # Imported late, so that --help does not load torch.
    from llmdreamer.export.model_files import export_run

    files = export_run(args.run_dir, args.directory, args.trust, POLICY_FOLDERS[args.best])
    lines = [f"{path}  {_size(path)}" for path in files]
    if args.push_to_hub is not None:
        from llmdreamer.backbones.saved_model import push_folder

        lines.append(push_folder(args.directory, args.push_to_hub, private=args.private))
    return "\n".join(lines)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
