"""Code of other packages, called by its dotted name if the user trusts the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmdreamer.utils.errors import ConfigError, did_you_mean


def check_trust(trust: Sequence[str]) -> None:
    """Check that every name of `trust` is that of a package or module, and none is torch.

    Raises:
        ConfigError: naming the first that is not.
    """
    for package in trust:
        if not all(word.isidentifier() for word in str(package).split(".")):
            raise ConfigError(
                f"trust={package!r}: must be the name of a Python package, as in trust=[mypackage]"
            )
        if package.partition(".")[0] == "torch":
            raise ConfigError(
                f"trust=[{package}] is never allowed: a file could then run any code through torch"
            )


def check_trusted(key: str, name: str, trust: Sequence[str]) -> None:
    """Refuse a dotted name outside the packages that the user trusts.

    Args:
        key: the configuration key that holds the name.
        name: `package.module.function`.
        trust: packages or modules; everything below them may run.

    Raises:
        ConfigError: with what to type.
    """
    if not all(word.isidentifier() for word in name.split(".")) or "." not in name:
        raise ConfigError(f"{key}={name}: must have the form package.module.function")
    if not any(name.startswith(f"{package}.") for package in trust):
        package = name.partition(".")[0]
        raise ConfigError(
            f"{key}={name} is code of another package: type trust=[{package}] to allow it"
        )


def package_folder(package: str) -> Path:
    """Return the folder of a package, or the file of a module. Raises ConfigError if it is missing."""
    top = package.partition(".")[0]
    spec = find_spec(top) if top.isidentifier() else None
    if spec is None:
        raise ConfigError(f"--trust {package}: package {top} is not installed")
    folders = [*(spec.submodule_search_locations or [])]
    return Path(folders[0] if folders else str(spec.origin))


def call(
    key: str, name: str, trust: Sequence[str], args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Call the function or class `name` with `args`, and `options` as keyword arguments.

    Raises:
        ConfigError: if it is not trusted, is missing, or does not accept these options.
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
        # If the plugin's module exists but an import inside it fails, keep that traceback.
        if f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{key}={name}: module {error.name} is not installed") from error
        raise
    function = getattr(module, attribute, None)
    if not callable(function):
        near = did_you_mean(attribute, vars(module))
        raise ConfigError(f"{key}={name}: {module_name} has no function {attribute}{near}")
    result: Callable[..., Any] = function
    return result
