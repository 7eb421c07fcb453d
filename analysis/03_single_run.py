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
# # A single run
#
# Losses, KL, return normalizer, replay ratio, gradient norms and speed of one run, in any state: the newest,
# or the newest whose id or name begins with `RUN`. Then the change that adapters make to each layer, the
# prediction error by horizon, and imagined beside observed values.

# %%
import os

from IPython.display import display

from llmdreamer.analysis import single_run
from llmdreamer.analysis.load import load

STORE = os.environ.get(
    "LLMDREAMER_STORE", "sqlite:///mlflow.db"
)  # a relative path starts at this notebook
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
RUN = os.environ.get("LLMDREAMER_RUN")

# %%
records = load(STORE, EXPERIMENT, statuses=("FINISHED", "RUNNING", "FAILED", "KILLED"))
for section in single_run.all_sections(records, RUN):
    display(section)
