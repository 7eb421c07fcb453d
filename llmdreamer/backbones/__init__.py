"""Sequence models for the world model, behind one interface."""

from llmdreamer.backbones.base import Backbone, Cache
from llmdreamer.backbones.factory import make_backbone

__all__ = ["Backbone", "Cache", "make_backbone"]
