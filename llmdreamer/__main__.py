"""`python -m llmdreamer COMMAND ...`: see llmdreamer/cli/command.py."""

from llmdreamer.cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())
