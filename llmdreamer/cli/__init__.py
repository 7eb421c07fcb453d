"""Command line: checks before Hydra starts, the folder of a run, error messages."""

from llmdreamer.cli.groups import group_options
from llmdreamer.cli.main import TRUSTED, JobReport, entry, job
from llmdreamer.cli.rundir import already_finished, register_resolvers, remove_if_refused
from llmdreamer.cli.settings import load_settings

__all__ = [
    "TRUSTED",
    "JobReport",
    "already_finished",
    "entry",
    "group_options",
    "job",
    "load_settings",
    "register_resolvers",
    "remove_if_refused",
]
