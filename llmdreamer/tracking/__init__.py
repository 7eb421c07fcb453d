"""The record of runs: a local spool that is the truth, and MLflow told from it."""

from llmdreamer.tracking.record import RunInfo
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import TrackingError, prepare, resolve_uri, ui_command
from llmdreamer.tracking.tracker import Tracker
from llmdreamer.utils.flatten import flatten
from llmdreamer.utils.redact import as_typed, redact

__all__ = [
    "RunInfo",
    "Spool",
    "Tracker",
    "TrackingError",
    "as_typed",
    "flatten",
    "prepare",
    "redact",
    "resolve_uri",
    "ui_command",
]
