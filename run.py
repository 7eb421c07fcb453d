"""Train one run or, with -m, a sweep of runs. `python run.py --help` lists the options."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llmdreamer import cli, config
from llmdreamer.sweep.run_lock import hold_run_lock

ROOT = Path(__file__).resolve().parent
os.environ["LLMDREAMER_ROOT"] = str(ROOT)  # the folder that contains sweeps/
config.register()
cli.register_resolvers()


@hydra.main(config_path=str(ROOT / "conf"), config_name="config", execution_whitelist=cli.TRUSTED)
@cli.job
def run(cfg: DictConfig) -> float | None:
    hydra_cfg = HydraConfig.get()
    folder = Path(hydra_cfg.runtime.output_dir)
    with hold_run_lock(folder), cli.remove_if_refused(folder):
        # Read under the lock: a process that held it before may have written a checkpoint to resume from.
        settings = config.load(cfg, hydra_cfg.overrides.task)
        if cli.already_finished(settings, folder):
            steps = settings.algo.total_steps
            print(
                f"{folder} is finished: {steps} policy steps are done; algo.total_steps=... adds more"
            )
            return None
        # Imported late: --help, --cfg and refused commands do not need torch.
        from llmdreamer.training.loop import train

        return train(settings, folder, hydra_cfg.overrides.task).objective


def main() -> int:
    return cli.entry(run)


if __name__ == "__main__":
    sys.exit(main())
