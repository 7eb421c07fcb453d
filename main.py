"""The same as run.py, under the name in the seed document: `python main.py exp=llm_dreamer_v3`."""

import sys

from llmdreamer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
