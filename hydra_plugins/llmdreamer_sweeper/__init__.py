"""Registers the sweeper, its launchers' options and the folder sweeps/ with Hydra.

`hydra/sweeper=llmdreamer` is the default. The options of hydra/launcher only tell the sweeper where to
start its processes; Hydra itself launches nothing. Hydra imports this module for every command, so it
imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from llmdreamer.config import is_registered
from llmdreamer.config.sources import config_root
from llmdreamer.sweep.settings import LAUNCHERS, SweeperSettings
from llmdreamer.utils.errors import ConfigError

ConfigStore.instance().store(
    group="hydra/sweeper", name="llmdreamer", node=SweeperSettings, provider="llmdreamer"
)
for _name, _node in LAUNCHERS.items():
    ConfigStore.instance().store(
        group="hydra/launcher", name=_name, node=_node, provider="llmdreamer"
    )


class SweepsSearchPath(SearchPathPlugin):
    """Adds sweeps/ as a config group beside those of conf/. `hydra.searchpath` stays free for the user."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra calls the plugins of all installed packages, also for the commands of other programs.
        if is_registered():
            search_path.append("llmdreamer", f"{SweepSpecSource.scheme()}://{config_root()}")


class SweepSpecSource(file_config_source.FileConfigSource):
    """Config source that shows only sweeps/ of the repository's root.

    Hydra's help lists every file below a search path and fails on some. A virtual environment in .venv
    alone has thousands.
    """

    @staticmethod
    def scheme() -> str:
        return "llmdreamer"

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path:
            return super().list(config_path, results_filter)
        return [] if results_filter is ObjectType.CONFIG else ["sweeps"]


class LLMDreamerSweeper(Sweeper):
    """Passes Hydra's call on to `llmdreamer.sweep.driver`, which is imported only then."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        from llmdreamer.sweep.driver import sweep

        assert self.config is not None and self.hydra_context is not None
        sweep(self.config, self.hydra_context.config_loader, arguments, _draw_study)


def _draw_study(storage: str, name: str, folder: Path) -> None:
    """Draw a study with the package's analysis, which a driver does not import before its end."""
    from llmdreamer.analysis.study import save_figures

    save_figures(storage, name, folder)


class RefusedLauncher(Launcher):
    """Target of the options of hydra/launcher. Only another sweeper instantiates it, which is refused."""

    def __init__(self, **settings: Any) -> None:
        raise ConfigError(
            "this hydra/launcher works only with hydra/sweeper=llmdreamer, the default"
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        raise NotImplementedError

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        raise NotImplementedError
