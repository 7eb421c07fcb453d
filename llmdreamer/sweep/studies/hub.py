"""Samplers of OptunaHub. They are code of other people, which is downloaded when it is asked for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from optuna.samplers import BaseSampler

from llmdreamer.utils.errors import ConfigError

PREFIX = "hub:"
"""`hydra.sweeper.sampler=hub:NAME` is the package samplers/NAME of OptunaHub's registry."""

_PACKAGE = "optunahub"
_NAME = re.compile(r"[a-z0-9_]+")


@cache
def hub_sampler(
    sampler: str, ref: str, folder: str | None, trust: tuple[str, ...]
) -> Callable[..., BaseSampler]:
    """Load a package of OptunaHub and return its sampler class. This runs code of the package.

    Args:
        sampler: `hub:NAME`.
        ref: commit, tag or branch of the registry, on GitHub.
        folder: a local copy of the registry's folder `package`, instead of GitHub.
        trust: packages that the user trusts; must contain `optunahub`.

    Raises:
        ConfigError: if the name is none, optunahub is not trusted or not installed, the package cannot be
            loaded, or it does not have exactly one sampler.
    """
    name = sampler.removeprefix(PREFIX)
    key = f"hydra.sweeper.sampler={sampler}"
    if not _NAME.fullmatch(name):  # it becomes a path
        raise ConfigError(f"{key}: the name of a sampler of OptunaHub has only a-z, 0-9 and _")
    if _PACKAGE not in trust:
        raise ConfigError(f"{key} runs code of OptunaHub: type trust=[{_PACKAGE}] to allow it")
    if find_spec(_PACKAGE) is None:
        raise ConfigError(f"{key}: {_PACKAGE} is not installed; pip install {_PACKAGE}")
    try:
        module = _load(f"samplers/{name}", ref, folder)
    except Exception as error:  # of git, of a network library, or of the package itself
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{key}: {reason}") from error
    return _sampler_class(key, module)


def _load(package: str, ref: str, folder: str | None) -> ModuleType:
    optunahub = import_module(_PACKAGE)
    module = (
        optunahub.load_module(package, ref=ref)
        if folder is None
        else optunahub.load_local_module(package, registry_root=folder)
    )
    assert isinstance(module, ModuleType)
    return module


def _sampler_class(key: str, module: ModuleType) -> Callable[..., BaseSampler]:
    names = getattr(module, "__all__", None) or vars(module)
    found = [getattr(module, name, None) for name in names]
    own = [
        kind
        for kind in found
        if inspect.isclass(kind)
        and issubclass(kind, BaseSampler)
        and kind.__module__.startswith(module.__name__)
    ]
    if len(own) != 1:
        raise ConfigError(f"{key}: the package has {len(own)} samplers; it must have one")
    kind: Callable[..., BaseSampler] = own[0]
    return kind
