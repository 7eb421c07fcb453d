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
# # One run from inside
#
# Losses, KL, return normaliser, the replay ratio that was held, gradient norms and speed of one run:
# the newest, or the one whose id or name begins with `RUN`, whatever its end. Then how far each layer's
# adapter has moved it, how far ahead the world model sees, and what it imagined beside what came.

# %%
import os

from IPython.display import display

from llmdreamer.analysis import inside
from llmdreamer.analysis.load import load

STORE = os.environ.get("LLMDREAMER_STORE", "sqlite:///mlflow.db")  # relative: to this notebook
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
RUN = os.environ.get("LLMDREAMER_RUN")

# %%
records = load(STORE, EXPERIMENT, statuses=("FINISHED", "RUNNING", "FAILED", "KILLED"))
for part in inside.everything(records, RUN):
    display(part)
