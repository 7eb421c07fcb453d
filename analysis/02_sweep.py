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
# # An Optuna study
#
# The study of a sweep: `LLMDREAMER_STUDY_STORAGE` names its folder (`outputs/sweeps/NAME`), its file or the
# URL of its database. Without it, the notebook shows the recorded study `data/study.db`: the outputs below.
# It is a short search of learning rate and replay ratio on CartPole ([its command](data/README.md)). Optuna
# computes the importances.

# %%
import os

from llmdreamer.analysis import study
from llmdreamer.analysis.notebook import pick

STORAGE = os.environ.get("LLMDREAMER_STUDY_STORAGE", "data/study.db")
STUDY = os.environ.get("LLMDREAMER_STUDY")  # not needed if there is only one
sections = study.all_sections(STORAGE, STUDY)

# %%
pick(sections, "Study")

# %% [markdown]
# ## History
#
# A point is a trial with its last objective; its shape says how the trial ended. The line is the best value
# so far: a search that still improves ends in a step.

# %%
pick(sections, "History")

# %% [markdown]
# ## Slices
#
# A panel shows the objective against one parameter, with a point for each trial: a parameter that matters
# shows a slope or a peak. Three complete trials, as in the recorded study, are too few to see one.

# %%
pick(sections, "Slices")

# %% [markdown]
# ## Parallel coordinates
#
# A line is a complete trial: it passes each parameter at its value and ends at its objective. The thick
# lines are the best tenth, and where they meet is a good value.

# %%
pick(sections, "Parallel coordinates")

# %% [markdown]
# ## Importances
#
# A bar is the share of the variation of the objective that a parameter explains. With three complete trials
# it is no more than a rough hint, which the text at the top says, too.

# %%
pick(sections, "Importances")

# %% [markdown]
# ## Intermediate values
#
# A line is the objective of a trial during its training, and a triangle ends a trial that the pruner
# stopped because it was worse than the median of the others at that step. It stopped seven of the ten
# recorded trials at step 200, before any trial had learned: a pruner needs `n_warmup_steps` beyond that.

# %%
pick(sections, "Intermediate values")

# %% [markdown]
# ## Timeline
#
# A bar is a trial from its start to its end. Gaps between bars are time in which nothing ran, and short
# bars are pruned trials.

# %%
pick(sections, "Timeline")

# %% [markdown]
# ## Pareto front
#
# A study of several objectives has no best trial, but a front of trials that no other beats in all of them.
# The recorded study has one objective, so it has no front.

# %%
pick(sections, "Pareto front")
