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
# # Comparison of arms
#
# Interquartile means over seeds with 95% stratified-bootstrap intervals (strata: environments), as in
# Agarwal et al. 2021, arXiv:2108.13264. Runs that did not finish are left out, and a note says how many.
# Drawing a figure again gives the same bytes.

# %%
import os

from llmdreamer.analysis import compare
from llmdreamer.analysis.load import load

STORE = os.environ.get(
    "LLMDREAMER_STORE", "sqlite:///mlflow.db"
)  # a relative path starts at this notebook
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")

# %%
records = load(STORE, EXPERIMENT, compare.KEYS)
compare.overview(records)

# %%
compare.table(records)

# %%
compare.curves(records, "env_step")

# %%
compare.curves(records, "seconds")

# %%
compare.curves(records, "compute")

# %%
compare.profile(records)

# %%
compare.improvement(records)

# %%
compare.one_knob_differences(records)
