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
# # A single run
#
# One run, in any state: the newest of the store, or the newest whose id or name begins with
# `LLMDREAMER_RUN`. The store is that of the folder where Jupyter was started (`LLMDREAMER_STORE` names
# another).
#
# Without a store, the notebook reads the folder of a recorded run, `data/cartpole_run`: the outputs below.
# It is `backbone=gru recipe=laptop_ends` on CartPole ([its command](data/README.md)).

# %%
import os

from llmdreamer.analysis import single_run
from llmdreamer.analysis.load import load
from llmdreamer.analysis.notebook import find_store, pick, read_run

STORE, RUN = find_store(), os.environ.get("LLMDREAMER_RUN")
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
STATUSES = ("FINISHED", "RUNNING", "FAILED", "KILLED")

# %% [markdown]
# ## Metrics
#
# Each panel is a group of metrics against environment steps: returns, losses, the KL of posterior and
# prior, gradient norms, speed. In the recorded run, the evaluated return is unsteady until step 3000 and
# then stays near 500, the highest possible, while the losses of the world model fall early and then change
# little.

# %%
records = load(STORE, EXPERIMENT, statuses=STATUSES) if STORE else read_run("data/cartpole_run")
sections = single_run.all_sections(records, RUN)
pick(sections, "One run")

# %% [markdown]
# ## Adapters
#
# With `peft=true`, a line shows how much the adapters change a kind of layer, block by block. The recorded
# run trains all weights, so it has no adapters.

# %%
pick(sections, "LoRA weight norms by layer")

# %% [markdown]
# ## Prediction error by horizon
#
# The world model sees some steps of new episodes, and then predicts the rest from the actions alone. It is
# useful as far as its error stays below that of repeating the last observation, which it does for all 15
# steps of the recorded run.

# %%
pick(sections, "Prediction error by horizon")

# %% [markdown]
# ## Observed and imagined
#
# One window: what was observed, and eight imagined trajectories from the dotted line on. The band is their
# range; where the observation leaves it, the model is surer than it should be.

# %%
pick(sections, "Observed and imagined")
