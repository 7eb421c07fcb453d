"""The folders of YAML files that commands compose their configuration from."""

from __future__ import annotations

from pathlib import Path


def config_root() -> Path:
    """Return the folder that contains conf/ and sweeps/.

    A wheel has them inside the package. In a checkout they are beside it, the only copy in the repository.
    """
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parent


def conf_folder() -> Path:
    """Return the folder of config.yaml and the configuration groups."""
    return config_root() / "conf"
