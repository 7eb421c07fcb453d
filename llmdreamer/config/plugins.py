"""Code of other packages: found by its dotted name, if the user has said that it may run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmdreamer.utils.errors import ConfigError, did_you_mean


def check_trusted(key: str, name: str, trust: Sequence[str]) -> None:
    """Refuse the name of something outside the packages that the user has named.

    Args:
        key: of the configuration, where the name stands.
        name: dotted, `package.module.function`.
        trust: packages or modules, all below which may run.

    Raises:
        ConfigError: saying what to type.
    """
    if not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ConfigError(f"{key}={name}: must be like package.module.function")
    if not any(name.startswith(f"{package}.") for package in trust):
        package = name.partition(".")[0]
        raise ConfigError(
            f"{key}={name} is code of another package: type trust=[{package}] to let it run"
        )


def folder_of(package: str) -> Path:
    """Where the code of a package or module lies. Raises ConfigError if it is not installed."""
    top = package.partition(".")[0]
    found = find_spec(top) if top.isidentifier() else None
    if found is None:
        raise ConfigError(f"--trust {package}: there is no package {top} installed")
    folders = [*(found.submodule_search_locations or [])]
    return Path(folders[0] if folders else str(found.origin))


def call(
    key: str, name: str, trust: Sequence[str], args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Call the function or class `name` with `args`, and `options` as keyword arguments.

    Raises:
        ConfigError: if it is not trusted, not there, or does not take these options.
    """
    check_trusted(key, name, trust)
    function = _find(key, name)
    try:
        inspect.signature(function).bind(*args, **options)
    except TypeError as error:
        raise ConfigError(f"{key}={name}: {error}; its options are {dict(options)}") from error
    return function(*args, **options)


def _find(key: str, name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # What a module of theirs misses in turn is not this name's fault, and deserves its traceback.
        if f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}={name}: there is no module {error.name} installed") from error
        raise
    found = getattr(module, attribute, None)
    if not callable(found):
        near = did_you_mean(attribute, vars(module))
        raise ConfigError(f"{key}={name}: {module_name} has no function {attribute}{near}")
    function: Callable[..., Any] = found
    return function
