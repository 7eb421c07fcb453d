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
# # Comparison of arms
#
# Interquartile means over seeds with 95% stratified-bootstrap intervals (strata: environments), as in
# Agarwal et al. 2021, arXiv:2108.13264. Drawing a figure again gives the same bytes.
#
# The runs come from the MLflow store of the folder where Jupyter was started (`LLMDREAMER_STORE` names
# another). Without a store they are the recorded results of this repository, `docs/results/cartpole`: the
# outputs below. Those files hold returns only, so figures of time and compute are missing.

# %%
import os

from llmdreamer.analysis import compare
from llmdreamer.analysis.load import load
from llmdreamer.analysis.notebook import find_store, read_results

STORE = find_store()
EXPERIMENT = os.environ.get("LLMDREAMER_EXPERIMENT", "llmdreamer")
RESULTS = "../docs/results/cartpole"

# %% [markdown]
# ## Runs
#
# Each row is an arm: runs that differ in the seed only. The text above the table says which runs are left
# out, and by which rule.

# %%
records = load(STORE, EXPERIMENT, compare.KEYS) if STORE else read_results(RESULTS, "CartPole-v1")
compare.overview(records)

# %% [markdown]
# ## Scores
#
# The score of a run is its return at a step that as many runs as possible reached. In the recorded results,
# three arms have one seed and three have two, so only gpt2 and gru have intervals that say much.

# %%
compare.table(records)

# %% [markdown]
# ## Return against environment steps
#
# A line is the interquartile mean of an arm's seeds, and the band is its interval; with few arms, thin
# lines show single runs. In the recorded results, every arm is far above a random policy (about 20) at the
# first evaluation, several stay at 500, and others fall back.

# %%
compare.curves(records, "env_step")

# %% [markdown]
# ## Return against wall time
#
# The same curves, against the time since the start of a run without its pauses. They show which arm is
# cheaper on the machine that ran them, so compare only runs of the same machine.

# %%
compare.curves(records, "seconds")

# %% [markdown]
# ## Return against compute
#
# The same curves, against the floating-point operations of all updates so far. They do not depend on the
# machine, so they are the fairer comparison of models of different size.

# %%
compare.curves(records, "compute")

# %% [markdown]
# ## Performance profile
#
# A line shows the share of an arm's runs that reach a return: the higher the line, the better the arm. In
# the recorded results the steps are large, because a run of five is a fifth of its arm.

# %%
compare.profile(records)

# %% [markdown]
# ## Probability of improvement
#
# A row shows how often a run of the first arm beats one of the second: 0.5 is chance. An interval that
# contains 0.5 shows no difference, and with two runs in an arm, one that does not contain it shows little
# either.

# %%
compare.improvement(records)

# %% [markdown]
# ## Differences by one knob
#
# A row is the mean difference of two arms that differ in one option, paired by seed. A difference counts if
# its interval excludes zero and its p-value, adjusted for the number of rows, is below 0.05: none of the
# recorded ones does.

# %%
compare.one_knob_differences(records)
