"""The command line: what is refused before Hydra starts, where a run goes, how errors are told."""

from llmdreamer.cli.main import TRUSTED, JobReport, entry, group_options, job
from llmdreamer.cli.rundir import finished, register_resolvers, remove_if_refused

__all__ = [
    "TRUSTED",
    "JobReport",
    "entry",
    "finished",
    "group_options",
    "job",
    "register_resolvers",
    "remove_if_refused",
]
