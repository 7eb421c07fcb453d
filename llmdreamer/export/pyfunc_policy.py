"""What MLflow runs to load a registered policy: it keeps this file's text, and no pickled object.

`predict` takes an observation as the environment shows it and returns the action as the environment
takes it. The model remembers: one that was loaded lives one episode, which begins with the first
call, and again with each call that has `params={"reset": True}`.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np


class PolicyModel(mlflow.pyfunc.PythonModel):  # type: ignore
    """An episode of a policy, behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from llmdreamer.export.policy import Policy

        # The artifacts lie in one folder, under the names that they were written with.
        # Whoever registered it trusted these packages, and their code came with the model.
        folder = Path(next(iter(context.artifacts.values()))).parent
        self.policy = Policy.load(folder, (context.model_config or {}).get("trust", []))

    # MLflow checks inputs by their type, and warns whoever loads the model of nearly every type but
    # this one, which it leaves alone. Numbers and dicts of arrays are as good.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Any:
        """The action for an observation; `params["reset"]`: it is the first of an episode."""
        if (params or {}).get("reset"):
            self.policy.reset()
        return self.policy.act(model_input)


mlflow.models.set_model(PolicyModel())
