"""Hydra's and OmegaConf's errors, each told in one line in the user's own terms."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from llmdreamer.config import GROUPS, ComposedConfig, leaves
from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.redact import redact

OPEN = ("env.kwargs.", "backbone.options.", "algo.options.")  # whose keys are not ours
_PLUGIN = "Unknown plugin class"  # which Hydra raises as a bare RuntimeError
LONGEST = 400  # characters of a line
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


@dataclass(frozen=True)
class UserError:
    line: str
    exit_code: int


def explain(error: Exception, task: Callable[..., Any]) -> UserError | None:
    """Return one line for a user's mistake, or None for an error that deserves its traceback.

    An error that carries an `exit_code` is one line wherever it arises; any other is a mistake in
    the configuration only if it arose before `task`'s own code was entered.
    """
    for link in _chain(error):
        code = getattr(link, "exit_code", None)
        if isinstance(code, int):
            return UserError(redact(_flat(str(link))), code)
    if task_traceback(error, task) is not None:
        return None
    kinds = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError)
    typed = isinstance(error, kinds) or str(error).startswith(_PLUGIN)
    return UserError(redact(_flat(_line(error))), ConfigError.exit_code) if typed else None


def _line(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        choices = [name for name in error.options or () if name != option]
        if group and choices:
            near = did_you_mean(option, choices)
            return f"{group}={option}: no such option; choose from {', '.join(choices)}{near}"
        return f"no such configuration: {error.missing_cfg_file}"
    if isinstance(error, OverrideParseException):
        return _unread(str(error.override))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be made or read: {error.strerror}"
    message, cause = str(error), error.__cause__
    if unknown := re.match(r"Could not override '([^']+)'", message):
        return describe_unknown_key(unknown[1])
    if isinstance(cause, ConfigKeyError) and cause.full_key:
        return describe_unknown_key(cause.full_key)
    if (merging := re.match(r"Error merging override (\S+)", message)) and cause is not None:
        return _mistyped(merging[1], cause)
    if not message and cause is not None:
        message = str(cause)
    return message or type(error).__name__


def _unread(override: str) -> str:
    """Say what of a word Hydra's grammar of overrides does not take."""
    key, equals, value = override.partition("=")
    if not (re.fullmatch(r"[+~]{0,2}[\w./@:-]+", key) and equals):
        return f"{override}: not of the form key=value"
    plain = value.strip("'\"").replace('"', "")
    return (
        f"{override}: the value cannot be read; brackets and quotes come in pairs, and other characters"
        f""" than A-Z a-z 0-9 . _ - / need quotes that the shell leaves: '{key}="{plain}"'"""
    )


def describe_unknown_key(key: str) -> str:
    """Say that a key does not exist, and which near one does."""
    parent, _, last = key.rpartition(".")
    if f"{parent}.".startswith(OPEN):
        return f"{parent} has no '{last}' yet: add it with +{key}=..."
    if f"{key}.".startswith(OPEN):
        return f"{key} has no such key yet: add each with +{key}.NAME=..."
    if parent.startswith("hydra.launcher"):
        return f"unknown key '{key}': docs/clusters.md has those of each hydra/launcher"
    sweepers = [f"hydra.sweeper.{one.name}" for one in fields(SweeperSettings)]
    return f"unknown key '{key}'{did_you_mean(key, [*leaves(ComposedConfig), *GROUPS, *sweepers])}"


def _mistyped(override: str, cause: BaseException) -> str:
    key, _, value = override.lstrip("+~").partition("=")
    if kind := leaves(ComposedConfig).get(key):
        shown = repr(value) if isinstance(yaml.safe_load(value), str) else value
        return f"{key}={shown}: must be {_words(kind)}"
    inner = next((leaf for leaf in leaves(ComposedConfig) if leaf.startswith(f"{key}.")), None)
    if inner is not None:
        return f"{key}={value}: {key} holds several values, set them one by one: {inner}=..."
    kinds = get_type_hints(SweeperSettings)  # Hydra's own keys are told in OmegaConf's words
    if kind := kinds.get(key.removeprefix("hydra.sweeper.")):
        return f"{key}={value}: must be {_words(kind)}"
    return f"{key}={value}: {str(cause).splitlines()[0]}"


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("null" if one is type(None) else _words(one) for one in get_args(kind))
    if get_origin(kind) is list:
        return "a list, like [a,b]"
    return _WORDS.get(kind, "a mapping, like {a: 1}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what led to it: OmegaConf wraps what our resolvers raise."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def task_traceback(error: BaseException, task: Callable[..., Any]) -> TracebackType | None:
    """Return the error's traceback from `task`'s own code on; None if it never came there."""
    body = inspect.unwrap(task).__code__
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code is not body:
        frame = frame.tb_next
    return frame


def _flat(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
