"""Describe errors of Hydra and OmegaConf in one line, in the terms of the user's command."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from llmdreamer.config import GROUPS, ComposedConfig, leaves
from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError, did_you_mean, first_line
from llmdreamer.utils.redact import redact_message

# Mappings whose keys the schema does not list.
OPEN_MAPPINGS = (
    *("env.kwargs.", "backbone.options.", "algo.options."),
    *("hydra.sweeper.params.", "hydra.sweeper.arms."),
    *("hydra.sweeper.sampler_options.", "hydra.sweeper.pruner_options."),
)
# Hydra's grammar knows keys without quotes only; a backslash stands before its own characters.
_QUOTED_KEY = re.compile(r"""(['"])([^'"]+)\1(?=\s*:)""")
_ESCAPED = re.compile(r"[()\[\]{}:=,\\]")
_PLUGIN_ERROR = "Unknown plugin class"  # Hydra raises it as a plain RuntimeError
MAX_LINE_CHARACTERS = 400
_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


@dataclass(frozen=True)
class UserError:
    """A user's mistake: one line to print and the exit code."""

    line: str
    exit_code: int


def explain(error: Exception, task: Callable[..., Any]) -> UserError | None:
    """Return one line for a user's mistake, or None for an error that needs its traceback.

    An error with an `exit_code` is always one line. Any other error is a mistake in the configuration
    only if it was raised before `task`'s own code started.
    """
    for link in _chain(error):
        code = getattr(link, "exit_code", None)
        if isinstance(code, int):
            return UserError(redact_message(_one_line(str(link))), code)
    if task_traceback(error, task) is not None:
        return None
    kinds = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError)
    if not isinstance(error, kinds) and not str(error).startswith(_PLUGIN_ERROR):
        return None
    return UserError(redact_message(_one_line(_describe(error))), ConfigError.exit_code)


def _describe(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        choices = [name for name in error.options or () if name != option]
        if group and choices:
            near = did_you_mean(option, choices)
            return f"{group}={option}: no such option; choose from {', '.join(choices)}{near}"
        return f"no such configuration: {error.missing_cfg_file}"
    if (described := _describe_override(error)) is not None:
        return described
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be created or read: {error.strerror}"
    message, cause = str(error), error.__cause__
    if unknown := re.match(r"Could not override '([^']+)'", message):
        return describe_unknown_key(_unknown_key(unknown[1], cause))
    if isinstance(cause, ConfigKeyError) and cause.full_key:
        return describe_unknown_key(cause.full_key)
    if (wrong_type := re.match(r"Error merging override (\S+)", message)) and cause is not None:
        return _describe_wrong_type(wrong_type[1], cause)
    if not message and cause is not None:
        message = str(cause)
    return message or type(error).__name__


def _unknown_key(typed: str, cause: BaseException | None) -> str:
    """Return the key that does not exist: the typed one, or one inside its mapping."""
    inside = cause.full_key if isinstance(cause, ConfigKeyError) else None
    is_below = inside and inside.startswith(f"{typed}.") and not inside.startswith(OPEN_MAPPINGS)
    return str(inside) if is_below else typed


def _describe_override(error: Exception) -> str | None:
    """Describe an override that Hydra's grammar does not accept; None for another error."""
    if isinstance(error, OverrideParseException):
        return _describe_unparsable(str(error.override))
    group = re.match(r"Override (.+) looks like a config group override", str(error))
    return None if group is None else _describe_group_key(group[1])


def _describe_unparsable(override: str) -> str:
    """Describe why Hydra's override grammar does not accept a word."""
    key, equals, value = override.partition("=")
    if not (re.fullmatch(r"[+~]{0,2}[\w./@:-]+", key) and equals):
        return f"{override}: must have the form key=value"
    if _QUOTED_KEY.search(value) and value.lstrip("'\"").startswith("{"):
        return _describe_quoted_keys(key, value)
    if "/" in key and (described := _describe_group_key(override)) is not None:
        return described
    typed = argument(key, value.strip("'\""))
    return (
        f"{override}: the value cannot be parsed; close brackets and quotes, and quote characters other"
        f" than A-Z a-z 0-9 . _ - / also for the shell: {typed}"
    )


def _describe_quoted_keys(key: str, value: str) -> str:
    """Describe how to type a mapping whose keys are in quotes, which Hydra does not accept."""
    unquoted = _QUOTED_KEY.sub(lambda match: _ESCAPED.sub(r"\\\g<0>", match[2]), value)
    open_mapping = f"{key.lstrip('+~')}.".startswith(OPEN_MAPPINGS)
    typed = f"{'+' if open_mapping else ''}{key.lstrip('+~')}={unquoted}"
    try:
        OverridesParser.create().parse_override(typed)
    except HydraException:
        remedy = "a key with such characters can only be set in a file, such as conf/env/NAME.yaml"
    else:
        remedy = "a key takes no quotes; type " + _shell_quote(typed)
    return f"{key}={value}: {remedy}"


def _describe_group_key(override: str) -> str | None:
    """Describe how to type a key with @ or /, which Hydra takes for a group; None for another key."""
    key, _, value = override.lstrip("+~").partition("=")
    parent = next((prefix for prefix in OPEN_MAPPINGS if key.startswith(prefix)), None)
    if parent is None:
        return None
    name = key.removeprefix(parent)
    return f"{override}: type such a key as {_shell_quote(f'+{parent[:-1]}={{{name}: {value}}}')}"


def _shell_quote(text: str) -> str:
    """Quote a word for the shell, even if it needs none."""
    quoted = shlex.quote(text)
    return quoted if quoted != text else f"'{text}'"


def describe_unknown_key(key: str) -> str:
    """Return the message for a key that does not exist, with the closest one that does."""
    parent, _, last = key.rpartition(".")
    if f"{parent}.".startswith(OPEN_MAPPINGS):
        return f"{parent} has no key '{last}': add it with +{key}=..."
    if f"{key}.".startswith(OPEN_MAPPINGS):
        return f"{key} has no such keys: add each with +{key}.NAME=..."
    if parent.startswith("hydra.launcher"):
        return f"unknown key '{key}': docs/clusters.md lists the keys of each hydra/launcher"
    known = [*leaves(ComposedConfig), *GROUPS, *leaves(SweeperSettings, "hydra.sweeper.")]
    return f"unknown key '{key}'{did_you_mean(key, known)}"


def _describe_wrong_type(override: str, cause: BaseException) -> str:
    key, _, value = override.lstrip("+~").partition("=")
    if kind := leaves(ComposedConfig).get(key):
        shown = repr(value) if isinstance(yaml.safe_load(value), str) else value
        return f"{key}={shown}: must be {_type_name(kind)}"
    inner = next((leaf for leaf in leaves(ComposedConfig) if leaf.startswith(f"{key}.")), None)
    if inner is not None:
        return f"{key}={value}: {key} has several values, set them one by one: {inner}=..."
    kinds = get_type_hints(SweeperSettings)  # for Hydra's own keys, OmegaConf's message is used
    if kind := kinds.get(key.removeprefix("hydra.sweeper.")):
        return f"{key}={value}: must be {_type_name(kind)}"
    return f"{key}={value}: {first_line(cause)}"


def _type_name(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        names = ("null" if arg is type(None) else _type_name(arg) for arg in get_args(kind))
        return " or ".join(names)
    if get_origin(kind) is list:
        return "a list, like [a,b]"
    return _TYPE_NAMES.get(kind, "a mapping, like {a: 1}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: OmegaConf wraps the errors of our resolvers."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def task_traceback(error: BaseException, task: Callable[..., Any]) -> TracebackType | None:
    """Return the error's traceback from `task`'s own code on, or None if it does not contain it."""
    body = inspect.unwrap(task).__code__
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code is not body:
        frame = frame.tb_next
    return frame


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARACTERS else f"{line[:MAX_LINE_CHARACTERS]} ..."
