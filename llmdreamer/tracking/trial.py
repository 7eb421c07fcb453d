"""The tags that identify a run of a sweep. Its driver passes them in an environment variable."""

from __future__ import annotations

import os

from pydantic import TypeAdapter, ValidationError

from llmdreamer.utils.errors import ConfigError

TRIAL_VARIABLE = "LLMDREAMER_TRIAL"
"""Environment variable that gives a sweep's run the tags that identify its trial, as JSON."""

VARIANT_TAG = "variant"
"""Tag with what tells a run from the others of its sweep; it is the run's name in MLflow."""


def trial_tags() -> dict[str, str] | None:
    """Return the tags that a sweep's driver has given to this run; None without a driver.

    Raises:
        ConfigError: if they are not what a driver writes.
    """
    text = os.environ.get(TRIAL_VARIABLE)
    if text is None:
        return None
    try:
        return TypeAdapter(dict[str, str]).validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(
            f"{TRIAL_VARIABLE}={text[:40]!r}: the driver of a sweep sets this to a mapping of texts, as JSON;"
            f" type unset {TRIAL_VARIABLE}"
        ) from error
