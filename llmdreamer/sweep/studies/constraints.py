"""Constraints on the cost of a run. A trial that breaks one is refused before it trains."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import Trial

from llmdreamer.config import Config
from llmdreamer.utils.redact import redact_message

_TIMEOUT_SECONDS = 1800


class NotMeasured(Exception):
    """The cost of a configuration could not be measured; its run would fail as well."""


def set_constraints(trial: Trial, config: Config, limits: Mapping[str, float]) -> None:
    """Measure a trial and give Optuna its constraints: the share by which each cost exceeds its limit.

    A trial that has them already, by a driver that died, is not measured again.

    Raises:
        NotMeasured: if it cannot be measured.
    """
    missing = [name for name in limits if name not in trial.constraints]
    if not missing:
        return
    costs = measure_costs(config, missing)
    for name in missing:
        trial.set_constraint(name, costs[name] / limits[name] - 1)


def broken_constraints(trial: Trial, limits: Mapping[str, float]) -> str | None:
    """Return why a trial is refused, or None. Optuna calls a constraint of at most 0 feasible."""
    excess = {name: _number(trial.constraints[name]) for name in limits}
    reasons = [
        f"{name} {(excess[name] + 1) * limit:.4g} > {limit:.4g}"
        for name, limit in limits.items()
        if excess[name] > 0
    ]
    return ", ".join(reasons) or None


def _number(value: Any) -> float:
    """Return a stored number. A database is data that others may write: anything else is infinite."""
    return float(value) if isinstance(value, int | float) else math.inf


def measure_costs(config: Config, names: Sequence[str]) -> dict[str, float]:
    """Measure a configuration in a process of its own: its environment and memory stay out of this one.

    Raises:
        NotMeasured: with the last line of the process.
    """
    with tempfile.TemporaryDirectory() as folder:  # only this user can read it
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(dataclasses.asdict(config)), encoding="utf-8")
        arguments = [str(path), ",".join(names), ",".join(config.trust)]
        command = [sys.executable, "-m", "llmdreamer.training.measure", *arguments]
        try:
            process = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_SECONDS,
                start_new_session=True,  # Ctrl-C is for the driver, which waits for this process
            )
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"its cost was not measured in {_TIMEOUT_SECONDS} s") from None
    if process.returncode == 0:
        costs: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
        return costs
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    raise NotMeasured(redact_message(f"its cost was not measured: {lines[-1]}"))
