"""Make `toys` importable by name, also by Gymnasium as `toys:ToyCount-v0`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
