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
# # A study of Optuna's
#
# History, importances, slices, parallel coordinates, timeline and the curves of pruned trials; of a study
# with several objectives, the Pareto front. Importances are Optuna's.

# %%
import os

from IPython.display import display

from llmdreamer.analysis import study

STORAGE = os.environ.get("LLMDREAMER_STUDY_STORAGE", "study.db")  # or outputs/sweeps/NAME, or a URL
STUDY = os.environ.get("LLMDREAMER_STUDY")  # not needed where there is only one

# %%
for part in study.everything(STORAGE, STUDY):
    display(part)
