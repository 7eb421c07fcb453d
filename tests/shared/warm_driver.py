"""Compose a sweep and open a study once, at import: both are slow the first time, in imports and parsers.

A fork server imports it, so that the drivers that it starts are quick.
"""

import os
from pathlib import Path

import optuna
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from llmdreamer import cli, config

config.register()
cli.register_resolvers()
with initialize_config_dir(str(Path(os.environ["LLMDREAMER_ROOT"]) / "conf")):
    loader = GlobalHydra.instance().config_loader()
    words = ["seed=0,1", "algo.optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    master = loader.load_configuration("config", words, RunMode.MULTIRUN)
    config.load(loader.load_sweep_config(master, ["seed=0"]), ["seed=0"])
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(storage="sqlite://")
study.tell(study.ask({"x": optuna.distributions.FloatDistribution(1, 2, log=True)}), 0.0)
study._storage.remove_session()
optuna.logging.set_verbosity(optuna.logging.INFO)
