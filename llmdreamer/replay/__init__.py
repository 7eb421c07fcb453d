"""Replay: experience on disk, and the number of updates that the replay ratio allows."""

from llmdreamer.replay.buffer import SequenceReplay
from llmdreamer.replay.credit import ReplayCredit

__all__ = ["ReplayCredit", "SequenceReplay"]
