# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
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
# Runs on the DeepMind Control Suite beside those of DreamerV3 and its baselines ([source](data/README.md)).
# The runs come from the MLflow store of the folder where Jupyter was started (`LLMDREAMER_STORE` names
# another). Without a store they are the recorded results of this repository, `docs/results/dmc`: the
# outputs below.

# %%
import os
from pathlib import Path

from llmdreamer.analysis import published
from llmdreamer.analysis.load import RETURN, load
from llmdreamer.analysis.notebook import find_store, read_results

STORE, RESULTS = find_store(), "../docs/results/dmc"
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
CURVES = Path(os.environ.get("LLMDREAMER_PUBLISHED", "data/dmc_proprio.csv"))

# %% [markdown]
# ## Return against environment steps
#
# A panel is a task; gray lines are published methods, colored ones are ours, with the number of runs. In
# the recorded results both of our arms are above DreamerV3 of April 2024 after 50 000 steps, with two runs
# each against five, and evaluations of the policy's mode against sampled training episodes.

# %%
env = "dmc:cartpole-balance"
records = load(STORE, EXPERIMENT, [RETURN]) if STORE else read_results(RESULTS, env)
published.against_published(records, published.read_published(CURVES))
