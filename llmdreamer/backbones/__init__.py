"""Sequence models as a world model's memory, behind one interface."""

from llmdreamer.backbones.base import Backbone, State
from llmdreamer.backbones.factory import make_backbone

__all__ = ["Backbone", "State", "make_backbone"]
