"""Replay: what was lived, on disk, and how much of it is owed to learning."""

from llmdreamer.replay.buffer import SequenceReplay
from llmdreamer.replay.credit import ReplayCredit

__all__ = ["ReplayCredit", "SequenceReplay"]
