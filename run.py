"""Train one run or, with -m, a sweep of runs: `llmdreamer train` from a checkout, installed or not."""

# Hydra's shell completion for `python run.py` looks for the text @hydra.main in this file. The function is in
# llmdreamer/cli/train.py.
import sys

from llmdreamer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
