"""A whole run: live, learn, evaluate, record, and leave a checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import AUTO, parse_objectives
from llmdreamer.config.objective import never_logged
from llmdreamer.evaluation.episodes import Evaluation, evaluate, record_video
from llmdreamer.evaluation.open_loop_record import FILE
from llmdreamer.evaluation.windows import evaluate_open_loop
from llmdreamer.tracking import Tracker, resolve_uri
from llmdreamer.tracking.record import Status
from llmdreamer.training.best import FOLDER as BEST
from llmdreamer.training.best import BestPolicy
from llmdreamer.training.display import Display
from llmdreamer.training.failures import in_one_line, no_memory
from llmdreamer.training.interrupts import Interrupts, Stopped
from llmdreamer.training.journal import Journal, start_tracker
from llmdreamer.training.summary import Best, plot_returns, summary
from llmdreamer.training.system import SystemMonitor
from llmdreamer.training.trainer import REQUIRED_STATE, Trainer, check_finite
from llmdreamer.types import Metrics
from llmdreamer.utils import distributed
from llmdreamer.utils.device import prepare
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import Config


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the last value of its (first) objective, and the last evaluation."""

    objective: float
    evaluation: Evaluation


def train(config: Config, run_dir: Path, overrides: Sequence[str] = ()) -> TrainResult:
    """Run `config` in `run_dir` to its end, going on from the newest checkpoint if it resumes.

    Of several processes that torchrun started, the first evaluates, records and writes checkpoints, in its
    `run_dir`.

    Args:
        overrides: what was typed on the command line, for the record.

    Raises:
        ConfigError: if something asked for is not there: before training.
        Diverged: if numbers stop being finite; it names the last good checkpoint.
        DiskFull: if experience cannot be stored any more.
        OutOfMemory: if an update cannot be made.
        Stopped: on SIGTERM, SIGUSR1 or Ctrl-C, after writing a checkpoint.
    """
    with distributed.process_group():
        return _train(config, distributed.broadcast_object(run_dir), overrides)


def _train(config: Config, run_dir: Path, overrides: Sequence[str]) -> TrainResult:
    prepare(config.threads)
    uri = resolve_uri(config.tracking.uri, Path.cwd())  # refused before anything is made
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    with in_one_line(run_dir, lambda: checkpoints.newest_path):
        trainer = _trainer(config, run_dir)
        checkpoints.clear_drafts()
        cursor = None  # a run killed before its first checkpoint begins anew in its folder
        if config.resume in (None, AUTO):
            trainer.replay.clear()
        else:
            cursor = _restore(trainer, checkpoints)
        tracker = None
        if distributed.is_first():
            tracker = start_tracker(trainer, run_dir, overrides, uri, cursor)
        status: Status = "FAILED"
        # To the very end: a second signal must not cut short what the first one began.
        with Interrupts() as interrupts:
            try:
                with CheckpointWriter(
                    checkpoints, lambda state: check_finite(state["trainer"])
                ) as saver:
                    result = Run(config, run_dir, trainer, saver, tracker).to_the_end(interrupts)
                status = "FINISHED"
            except (Stopped, KeyboardInterrupt):
                status = "KILLED"
                raise
            finally:
                trainer.close()
                if tracker is not None:
                    tracker.finish(status)
    return result


def _trainer(config: Config, run_dir: Path) -> Trainer:
    """Raises ConfigError also where memory does not hold it."""
    try:
        return Trainer(config, run_dir)
    except (MemoryError, RuntimeError) as error:
        if no_memory(error):
            asked = str(error).splitlines()[0]
            raise ConfigError(f"no memory for this agent and its environments ({asked})") from error
        raise


def _restore(trainer: Trainer, checkpoints: Checkpoints) -> int:
    """Put the trainer where the newest checkpoint left it; returns the end of its metrics.

    Raises:
        ConfigError: if the checkpoint is damaged, of another run, or not of a whole one, as best/ is not.
    """
    saved = checkpoints.newest(trainer.device)
    inside = saved.get("trainer", {})
    if lost := sorted({"metrics_offset"} - saved.keys() | REQUIRED_STATE - inside.keys()):
        raise ConfigError(
            f"{checkpoints.newest_path} is no checkpoint to go on from: it has no {', '.join(lost)}"
        )
    trainer.load_state_dict(inside)
    return int(saved["metrics_offset"])


class Run:
    """The loop: steps, and from time to time an evaluation and a checkpoint; then the end."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        trainer: Trainer,
        saver: CheckpointWriter,
        tracker: Tracker | None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.trainer = trainer
        self.saver = saver
        self.tracker = tracker
        self.journal = Journal(trainer, saver, tracker)
        goes_on = trainer.policy_step > 0
        self.best = None
        if tracker is not None:
            self.best = BestPolicy(run_dir, trainer.device, saver, goes_on=goes_on)
        self.system = SystemMonitor(trainer.device, run_dir)
        self._pending: list[Metrics] = []
        self._compiled = False  # and told so

    def to_the_end(self, interrupts: Interrupts) -> TrainResult:
        """Train for the rest of the budget, evaluate, and say where everything lies.

        All processes return what the first has found.
        """
        config, trainer = self.config, self.trainer
        total = config.algo.total_steps
        if trainer.policy_step == 0:
            self.journal.log(trainer.counts())
        budget, quiet = total * config.env.action_repeat, self.tracker is None
        with Display(budget, trainer.env_step, trainer.updates, quiet=quiet) as display:
            while trainer.policy_step < total or trainer.update_due():
                self._step(display, interrupts)
                if self.system.due():
                    self.journal.log(self.system.read())
                if (received := _signal(interrupts)) > 0:
                    self._save(display, ending=True)
                    raise self._stopped(received)
            self.journal.log(self.system.read())
            self._save(display, ending=True)
        try:
            if distributed.size() == 1:  # others would wait for what the first has found
                interrupts.at_once()
            result = distributed.broadcast_object(self._finish())
        except Stopped as stopped:
            raise self._stopped(stopped.signum) from None
        assert result is not None
        return result

    def _stopped(self, signum: int) -> Stopped:
        """Say how to go on."""
        trust = f" trust=[{','.join(self.config.trust)}]" if self.config.trust else ""
        if self.tracker is not None:  # once, of several processes
            print(f"stopped; go on with: python run.py resume={self.run_dir}{trust}", flush=True)
        return Stopped(signum)

    def _step(self, display: Display, interrupts: Interrupts) -> None:
        config, trainer = self.config, self.trainer
        if not trainer.update_due():  # else the run was stopped between two updates
            self._live(display)
        for metrics in trainer.train_updates():
            self._pending.append(metrics)
            if len(self._pending) >= config.tracking.log_every:
                self._flush(display)
            if trainer.update_due() and _signal(interrupts) > 0:
                return  # the rest of this step is for the next life
        if (seconds := trainer.compile_seconds) is not None and not self._compiled:
            self._compiled = True
            self.journal.log({"time/compile_seconds": seconds})
            display.say(f"compiled in {seconds:.0f} s")
        self.saver.raise_pending()
        display.update(trainer.env_step)
        ending = trainer.policy_step >= config.algo.total_steps
        due = _crossed(trainer, config.eval.every) and trainer.updates > 0 and not ending
        if due and self.tracker is not None:
            with trainer.clock.stage("evaluation"):
                result = _evaluate(self, config.eval.episodes, config.seed)
            self.journal.log(result.metrics())
            self._offer(result)
            display.say(
                f"evaluation at env step {trainer.env_step}: {result} "
                f"over {config.eval.episodes} episodes"
            )
        if _crossed(trainer, config.checkpoint.every) and not ending:
            self._save(display)

    def _live(self, display: Display) -> None:
        for episode in self.trainer.collect_step():
            row = {"episode/return": episode.episode_return, "episode/length": episode.length}
            self.journal.log({name: float(value) for name, value in row.items()})
            display.update(self.trainer.env_step, episode_return=f"{episode.episode_return:.0f}")

    def _flush(self, display: Display) -> None:
        """Log the updates since the last time."""
        if not self._pending:
            return
        self.trainer.guard.look()
        row = self.journal.log_updates(self._pending)
        self._pending.clear()
        display.update(
            self.trainer.env_step,
            updates=str(self.trainer.updates),
            loss=f"{row['world_model/loss']:.2f}",
            speed=f"{row['time/updates_per_second']:.1f}",
        )

    def _save(self, display: Display, *, ending: bool = False) -> None:
        """Have a checkpoint written; the last one of this process is waited for."""
        trainer = self.trainer
        self._flush(display)  # what is not logged yet would be lost to the resumed run
        if norms := trainer.adapter_norms():
            self.journal.log(norms)
        with trainer.clock.stage("checkpoint"):
            own = trainer.state_dict()
            if (tracker := self.tracker) is not None:
                flush = trainer.replay.make_flush()

                def before() -> None:
                    flush()
                    tracker.flush()

                state = {"trainer": own, "metrics_offset": tracker.offset()}
                self.saver.save(state, trainer.policy_step, before)
            if ending:
                self.saver.wait()
                # torchrun ends all when one leaves: none may while the first still writes.
                distributed.barrier()
        if ending and (figures := self.saver.take_metrics()):
            self.journal.log(figures)

    def _finish(self) -> TrainResult | None:
        """The last evaluation and what the run leaves; None in all processes but the first."""
        if self.tracker is None:
            return None
        config, trainer = self.config, self.trainer
        result = _evaluate(self, config.eval.final_episodes, config.seed)
        self.journal.log(result.metrics())
        if self.best is not None and self.best.policy_step is not None:  # the only one is no choice
            self._offer(result)
        if config.eval.open_loop_windows > 0:
            self._foretell(self.tracker)
        if config.eval.video:
            path = self.run_dir / "policy.gif"
            greedy = config.eval.greedy
            video = record_video(trainer.agent, config.env, config.seed, path, greedy=greedy)
            self.tracker.log_artifact(video)
        best = self._evaluate_best()
        picture = plot_returns(self.run_dir)
        self.tracker.log_artifact(picture)
        if (checkpoint := self.saver.checkpoints.newest_path) is not None:
            self.tracker.log_artifact(checkpoint, "checkpoints")
        if best is not None:
            self.tracker.log_artifact(self.run_dir / BEST)
        metrics = [objective.metric for objective in parse_objectives(config.objective)]
        if lost := [metric for metric in metrics if metric not in self.journal.newest]:
            raise ConfigError(never_logged(lost, self.journal.newest))
        told = self.saver.checkpoints.describe(trainer.policy_step, config.env.action_repeat)
        print(summary(config, self.run_dir, result, best, told, self.tracker.ui_command))
        return TrainResult(self.journal.newest[metrics[0]], result)

    def _offer(self, result: Evaluation) -> None:
        """Keep the agent if it seems to be the best so far, and more episodes say so as well.

        Those are the same for all that get so far. By the few of an evaluation alone, the luckiest of many
        would be kept.
        """
        config, trainer = self.config, self.trainer
        if not config.eval.keep_best or self.best is None or result.mean < self.best.mean:
            return
        with trainer.clock.stage("evaluation"):
            seed = config.seed + SeedOffset.SELECTION
            result = _evaluate(self, config.eval.final_episodes, seed)
        with trainer.clock.stage("checkpoint"):
            self.best.offer(trainer.agent, result, trainer.policy_step)

    def _evaluate_best(self) -> Best | None:
        """Evaluate the best policy on episodes that it was not chosen by: the agent has its weights then."""
        config = self.config
        if not config.eval.keep_best or self.best is None or self.best.policy_step is None:
            return None
        self.best.restore(self.trainer.agent)
        result = _evaluate(self, config.eval.final_episodes, config.seed + SeedOffset.FINAL)
        self.journal.log({"eval/best_return": result.mean, "eval/best_return_sd": result.deviation})
        return Best(result, self.best.policy_step * config.env.action_repeat)

    def _foretell(self, tracker: Tracker) -> None:
        """Measure how far ahead the world model sees."""
        config, trainer = self.config, self.trainer
        found = evaluate_open_loop(
            trainer.agent, config, config.eval.open_loop_windows, config.seed
        )
        self.journal.log(found.metrics())
        tracker.log_artifact(found.save(self.run_dir / FILE))


def _evaluate(run: Run, episodes: int, seed: int) -> Evaluation:
    agent, config = run.trainer.agent, run.config
    return evaluate(agent, config.env, episodes, seed, greedy=config.eval.greedy)


def _signal(interrupts: Interrupts) -> int:
    """The signal that came, 0 without one; of several processes the same in all."""
    return distributed.all_reduce_max(interrupts.received or 0)


def _crossed(trainer: Trainer, every: int) -> bool:
    """Whether the last policy step passed a multiple of `every`; never if that is 0."""
    before = trainer.policy_step - trainer.config.env.num_envs * distributed.size()
    return every > 0 and trainer.policy_step // every > before // every
