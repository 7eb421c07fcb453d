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
# # An Optuna study
#
# History, importances, slices, parallel coordinates, timeline and the curves of pruned trials. For a study
# with several objectives: the Pareto front and the timeline. Optuna computes the importances.

# %%
import os

from IPython.display import display

from llmdreamer.analysis import study

STORAGE = os.environ.get("LLMDREAMER_STUDY_STORAGE", "study.db")  # or outputs/sweeps/NAME, or a URL
STUDY = os.environ.get("LLMDREAMER_STUDY")  # not needed if there is only one

# %%
for section in study.all_sections(STORAGE, STUDY):
    display(section)
