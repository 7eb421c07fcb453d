# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparison with published curves
#
# Our runs on the DeepMind Control Suite beside those of DreamerV3 and its baselines (`data/README.md`).

# %%
import os
from pathlib import Path

from llmdreamer.analysis import published
from llmdreamer.analysis.load import RETURN, load

STORE = os.environ.get(
    "LLMDREAMER_STORE", "sqlite:///mlflow.db"
)  # a relative path starts at this notebook
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
CURVES = Path(os.environ.get("LLMDREAMER_PUBLISHED", "data/dmc_proprio.csv"))

# %%
records = load(STORE, EXPERIMENT, [RETURN])
published.against_published(records, published.read_published(CURVES))
