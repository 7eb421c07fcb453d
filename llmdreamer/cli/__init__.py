"""The command line: what is refused before Hydra starts, where a run goes, how errors are told."""

from llmdreamer.cli.main import TRUSTED, JobReport, entry, group_options, job
from llmdreamer.cli.rundir import begun_or_gone, finished, register_resolvers

__all__ = [
    "TRUSTED",
    "JobReport",
    "begun_or_gone",
    "entry",
    "finished",
    "group_options",
    "job",
    "register_resolvers",
]
