"""The same as run.py, under the name in the document that the project began from.

`python main.py exp=llm_dreamer_v3` runs its experiment.
"""

import sys

from llmdreamer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
