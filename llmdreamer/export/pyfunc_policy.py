"""Loads a registered policy in MLflow, which stores the text of this file and no pickled object.

`predict` takes an observation of the environment and returns an action for it. The model keeps a recurrent
state: the first call starts an episode, and so does each call with `params={"reset": True}`.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np


class PolicyModel(mlflow.pyfunc.PythonModel):  # type: ignore
    """A policy behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from llmdreamer.export.policy import Policy

        # The artifacts are in one folder, with their original names. `trust` lists the packages that were
        # trusted at registration; their code is stored with the model.
        folder = Path(next(iter(context.artifacts.values()))).parent
        self.policy = Policy.load(folder, (context.model_config or {}).get("trust", []))

    # The annotation is np.ndarray because MLflow warns about most other types. Numbers and dicts of arrays
    # work as well.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Any:
        """Return the action for an observation; `params["reset"]` marks the first of an episode."""
        if (params or {}).get("reset"):
            self.policy.reset()
        return self.policy.act(model_input)


mlflow.models.set_model(PolicyModel())
