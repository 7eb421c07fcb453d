"""Wrapper of `@hydra.main`: exit codes, one line for a user's mistake, a traceback for a bug."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import execution_whitelist
from omegaconf import DictConfig

from llmdreamer import __version__
from llmdreamer.cli.explain import UserError, describe_unknown_key, explain, task_traceback
from llmdreamer.cli.groups import check_group
from llmdreamer.cli.texts import quote_texts
from llmdreamer.config import GROUPS, ComposedConfig, leaves
from llmdreamer.config.plugins import check_trust
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE
from llmdreamer.sweep.settings import LAUNCHERS
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.openmp import wait_briefly
from llmdreamer.utils.output import print_error, print_line, replace_unencodable
from llmdreamer.utils.program import to_type
from llmdreamer.utils.redact import as_typed, redact_message, redact_override

EXIT_INTERRUPTED = 130
# The only names that a configuration's `_target_` may call. Hydra trusts its own plugins by itself.
TRUSTED = (
    "llmdreamer.cli.main.JobReport",
    "llmdreamer.sweep.hydra_callback.ParentRunCallback",
    "llmdreamer.utils.redact.RedactingFormatter",
)

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("llmdreamer")


def entry(task: Callable[[], Any]) -> int:
    """Run the `@hydra.main` function `task` on sys.argv and return the process's exit code.

    0: done; 2: a user's mistake, printed in one line; 130: interrupted. An error with an `exit_code`
    is printed in one line and exits with that code. Any other error is a bug: it is raised, so Python
    shows its traceback and exits with 1.
    """
    sys.excepthook = _print_traceback
    wait_briefly()
    replace_unencodable()
    logging.raiseExceptions = False  # a closed pipe or a full disk costs lines, and no tracebacks
    if "--version" in sys.argv[1:]:  # Hydra's flag prints its own version
        print_line(f"llmdreamer {__version__}")
        return 0
    try:
        sys.argv[1:] = quote_texts(sys.argv[1:])
        refuse_misused_flags(sys.argv[1:])
        with _raw_errors(), execution_whitelist(trusted_patterns(sys.argv[1:])):
            task()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except _Mistake as mistake:
        if _traceback_wanted():
            raise mistake.error from None
        return _print_error(mistake.message)
    except Exception as error:
        message = explain(error, task)
        if _traceback_wanted():
            raise
        if message is None:
            # Drop Hydra's twelve frames above the task's own.
            error.__traceback__ = task_traceback(error, task) or error.__traceback__
            raise
        return _print_error(message)
    return 0


def job(function: Callable[P, R]) -> Callable[P, R]:
    """Carry the one-line errors of a single run past Hydra, which would print lines of its own.

    Hydra does not catch a `BaseException`. In a sweep the other runs must continue, so there the error
    stays an `Exception`.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            message = explain(error, function)
            if message is None or HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            raise _Mistake(error, message) from error

    return wrapped


class _Mistake(BaseException):
    def __init__(self, error: Exception, message: UserError) -> None:
        super().__init__(message.line)
        self.error, self.message = error, message


def _print_error(message: UserError) -> int:
    print_error(message.line)
    return message.exit_code


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of a bug as Python does, without secrets."""
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def refuse_misused_flags(argv: Sequence[str]) -> None:
    """Refuse flags that Hydra would misread: lists and sweeps without -m, and resume with it.

    Raises:
        ConfigError: with what to type instead.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would also print its usage
    args = parser.parse_intermixed_args(list(argv))
    if args.help or args.hydra_help or args.info or args.shell_completion:
        return
    overrides = OverridesParser.create().parse_overrides(args.overrides)
    multirun = args.multirun or any(
        o.key_or_group == "hydra.mode" and str(o.value()).endswith("MULTIRUN") for o in overrides
    )
    for override in overrides:
        key, line = override.key_or_group, redact_override(str(override.input_line))
        _refuse_unknown(override)
        if key == "hydra.searchpath":
            _refuse_missing_path(override)
        if key == "sweeps" and override.is_sweep_override():
            first = next(iter(override.sweep_string_iterator()))
            raise ConfigError(
                f"{line}: give one sweep specification at a time ({_sweep_command(f'sweeps={first}')})"
            )
        resumes = key == "resume" and not override.is_delete() and override.value() is not None
        if resumes and multirun:
            raise ConfigError(f"{line} resumes one run: type {to_type()} {line}")
        if override.is_sweep_override() and not multirun:
            raise ConfigError(f"{line} is a list of values: {_as_sweep(line)}")
        # A sweep's driver gives its runs these values and sets DRIVER_VARIABLE.
        single_run = not multirun and not args.cfg and DRIVER_VARIABLE not in os.environ
        for_sweeps = (key in ("seeds", "rerun") and override.value() not in (None, False)) or (
            key == "hydra/launcher" and override.value() in LAUNCHERS
        )
        if for_sweeps and single_run:
            raise ConfigError(f"{line} is for sweeps: {_as_sweep(line)}")
        if key == "sweeps" and override.value() is not None and single_run:
            raise ConfigError(f"{line} is a sweep: {_as_sweep(line)}")


def _as_sweep(override: str) -> str:
    return f"start a sweep ({_sweep_command(override)})"


def _sweep_command(override: str) -> str:
    return f"{to_type(multirun=True)} {as_typed([override])}"


def trusted_patterns(argv: Sequence[str]) -> list[str]:
    """Return the patterns of names that Hydra may call because of a typed `trust=[...]`."""
    parser = get_args_parser()
    typed = OverridesParser.create().parse_overrides(
        [word for word in parser.parse_intermixed_args(list(argv)).overrides if "trust=" in word]
    )
    values = [override.value() for override in typed if override.key_or_group == "trust"]
    packages = values[-1] if values and isinstance(values[-1], list) else []
    names = [str(package) for package in packages]
    check_trust(names)
    return [f"{name}.*" for name in names]


def _refuse_unknown(override: Override) -> None:
    """Refuse unknown keys and options that Hydra would accept or explain badly."""
    key = override.key_or_group
    top = key.partition(".")[0]
    if top.partition("/")[0] != "hydra" and top not in {
        *GROUPS,
        *(leaf.split(".")[0] for leaf in leaves(ComposedConfig)),
    }:
        raise ConfigError(describe_unknown_key(key))
    check_group(override)


def _refuse_missing_path(override: Override) -> None:
    """Refuse a search path that does not exist: Hydra would only warn."""
    paths = override.value()
    for path in paths if isinstance(paths, list) else [paths]:
        scheme, _, location = str(path).rpartition("://")
        if scheme == "pkg" and not _is_package(location):
            raise ConfigError(f"{override.input_line}: package {location} is not installed")
        if scheme in ("", "file") and not Path(location).is_dir():
            raise ConfigError(f"{override.input_line}: there is no folder {location}")


def _is_package(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see {to_type()} --help")


def _traceback_wanted() -> bool:
    return os.environ.get("LLMDREAMER_FULL_ERROR") == "1"


@contextmanager
def _raw_errors() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and exiting.

    HYDRA_FULL_ERROR is its only switch for that. The user's value is kept in LLMDREAMER_FULL_ERROR,
    which child processes inherit.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ.setdefault("LLMDREAMER_FULL_ERROR", before or "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


class JobReport(Callback):
    """Report failed jobs of a sweep when they fail. Hydra itself waits until the last job is done.

    Hydra prints the overrides of a failed job, so they are redacted first.
    """

    def __init__(self) -> None:
        self.jobs = self.failed = 0

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.FAILED:
            words = job_return.overrides or []
            job_return.overrides = [redact_message(redact_override(word)) for word in words]
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        self.jobs += 1
        if job_return.status is JobStatus.FAILED:
            self.failed += 1
            log.error("job %s failed: %s", config.hydra.job.num, _describe_failure(job_return))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.failed:
            log.error("%d of %d jobs failed", self.failed, self.jobs)


def _describe_failure(job_return: JobReturn) -> str:
    error = job_return._return_value  # the public property prints
    if hasattr(error, "exit_code"):
        return str(error)
    return f"{type(error).__name__}: {error} (traceback: {HydraConfig.get().runtime.output_dir}/run.log)"
