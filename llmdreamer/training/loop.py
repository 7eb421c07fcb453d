"""A whole run: collect, train, evaluate, record, and write checkpoints to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.checkpoint.async_writer import CheckpointWriter
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import AUTO, parse_objectives
from llmdreamer.config.objective import never_logged_message
from llmdreamer.evaluation.episodes import Evaluation, check_video, evaluate, record_video
from llmdreamer.evaluation.open_loop_record import FILE
from llmdreamer.evaluation.windows import evaluate_open_loop
from llmdreamer.tracking import Tracker, resolve_uri
from llmdreamer.tracking.record import Status
from llmdreamer.tracking.run_guard import refusal
from llmdreamer.tracking.trial import trial_tags
from llmdreamer.training.best import BEST_FOLDER, BestPolicy
from llmdreamer.training.display import Display, duration
from llmdreamer.training.failures import explain_failures, is_out_of_memory
from llmdreamer.training.interrupts import Interrupts
from llmdreamer.training.journal import Journal, start_tracker
from llmdreamer.training.remaining_time import RemainingTime
from llmdreamer.training.summary import BestPolicyResult, opening, plot_returns, summary
from llmdreamer.training.system import SystemMonitor
from llmdreamer.training.trainer import REQUIRED_STATE, Trainer, check_finite
from llmdreamer.types import Metrics
from llmdreamer.utils import distributed
from llmdreamer.utils.command_line import resume_command
from llmdreamer.utils.device import prepare
from llmdreamer.utils.errors import ConfigError, Stopped, first_line
from llmdreamer.utils.output import only_shown, print_line
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import Config


@dataclass(frozen=True)
class TrainResult:
    """The last value of the run's first objective, and its last evaluation."""

    objective: float
    evaluation: Evaluation


def train(config: Config, run_dir: Path, overrides: Sequence[str] = ()) -> TrainResult:
    """Run `config` in `run_dir` to its end, from the newest checkpoint if it resumes.

    With several processes, rank 0 evaluates, records and writes checkpoints, in its `run_dir`.

    Args:
        overrides: the overrides typed on the command line, for the record.

    Raises:
        ConfigError: if something requested is missing, or `run_dir` holds another run; raised before
            training.
        Diverged: if numbers stop being finite; it names the last good checkpoint.
        DiskFull: if there is no space left for experience.
        EnvError: if environments fail more than `env.max_restarts` times.
        ExitedEarly: if code in the run calls `sys.exit`.
        FolderUnusable: if a file in `run_dir` cannot be read or written.
        OutOfMemory: if memory is too short for an update.
        Stopped: on SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, after writing a checkpoint.
    """
    with distributed.process_group():
        # Checked here, because `hydra.run.dir` may name any folder.
        in_sweep = trial_tags() is not None
        reason = distributed.broadcast_object(refusal(run_dir, config, in_sweep=in_sweep))
        if reason is not None:
            raise ConfigError(reason)
        return _train(config, distributed.broadcast_object(run_dir), overrides)


def _train(config: Config, run_dir: Path, overrides: Sequence[str]) -> TrainResult:
    prepare(config.threads)
    uri = resolve_uri(config.tracking.uri, Path.cwd())  # refused before any file is created
    if config.eval.video:
        check_video(config.env, config.seed)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    with explain_failures(run_dir, lambda: checkpoints.newest_path, config.trust):
        trainer = _make_trainer(config, run_dir)
        checkpoints.clear_drafts()
        # None: the run starts at step 0, also after a kill before its first checkpoint
        cursor = None
        if config.resume in (None, AUTO):
            trainer.replay.clear()
        else:
            cursor = _restore(trainer, checkpoints)
        tracker = None
        if distributed.is_main():
            tracker = start_tracker(trainer, run_dir, overrides, uri, cursor)
        status: Status = "FAILED"
        # Until the very end: a second signal must not interrupt the handling of the first.
        with Interrupts() as interrupts:
            try:
                with CheckpointWriter(
                    checkpoints, lambda state: check_finite(state["trainer"])
                ) as writer:
                    result = Run(config, run_dir, trainer, writer, tracker).run(interrupts)
                status = "FINISHED"
            except (Stopped, KeyboardInterrupt):
                status = "KILLED"
                raise
            finally:
                trainer.close()
                if tracker is not None:
                    tracker.finish(status)
    return result


def _make_trainer(config: Config, run_dir: Path) -> Trainer:
    """Build the trainer; ConfigError also if memory is too short for it."""
    try:
        return Trainer(config, run_dir)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            cause = first_line(error)
            raise ConfigError(
                f"not enough memory for this agent and its environments ({cause})"
            ) from error
        raise


def _restore(trainer: Trainer, checkpoints: Checkpoints) -> int:
    """Restore the trainer from the newest checkpoint; return the end of its metrics.

    Raises:
        ConfigError: if the checkpoint is damaged, of another run, or holds a policy only, as best/ does.
    """
    saved = checkpoints.newest(trainer.device)
    state = saved.get("trainer", {})
    if missing := sorted({"metrics_offset"} - saved.keys() | REQUIRED_STATE - state.keys()):
        raise ConfigError(
            f"{checkpoints.newest_path} cannot be resumed from: it has no {', '.join(missing)}"
        )
    trainer.load_state_dict(state)
    return int(saved["metrics_offset"])


class Run:
    """The training loop: steps with evaluations and checkpoints in between, then the final evaluation."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        trainer: Trainer,
        writer: CheckpointWriter,
        tracker: Tracker | None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.trainer = trainer
        self.writer = writer
        self.tracker = tracker
        self.journal = Journal(trainer, writer, tracker)
        resumed = trainer.policy_step > 0
        self.best = None
        if tracker is not None:
            self.best = BestPolicy(run_dir, trainer.device, writer, resumed=resumed)
        self.system = SystemMonitor(trainer.device, run_dir)
        self.remaining = RemainingTime()
        self._pending: list[Metrics] = []
        self._reported_compile = False

    def run(self, interrupts: Interrupts) -> TrainResult:
        """Train for the rest of the budget, evaluate, and print the summary.

        All processes return the result of rank 0.
        """
        config, trainer = self.config, self.trainer
        total = config.algo.total_steps
        counts = trainer.counts()
        if trainer.policy_step == 0:
            self.journal.log(counts)
        if self.tracker is not None:
            updates = trainer.optimizer.total_updates
            print_line(opening(config, self.run_dir, counts, trainer.device, updates))
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
            if distributed.size() == 1:  # otherwise the others would wait for rank 0
                interrupts.raise_at_once()
            result = distributed.broadcast_object(self._finish())
        except Stopped as stopped:
            raise self._stopped(stopped.signum) from None
        assert result is not None
        return result

    def _stopped(self, signum: int) -> Stopped:
        """Print the command that resumes the run; return the exception to raise."""
        if self.tracker is not None:  # rank 0 only
            print_line(f"stopped; resume with: {resume_command(self.run_dir, self.config.trust)}")
        return Stopped(signum)

    def _step(self, display: Display, interrupts: Interrupts) -> None:
        """Take a policy step, make the updates that are due, then evaluate and save if due."""
        config, trainer = self.config, self.trainer
        if not trainer.update_due():  # otherwise the run was stopped between two updates
            self._collect(display)
        for metrics in trainer.train_updates():
            self._pending.append(metrics)
            if len(self._pending) >= config.tracking.log_every:
                self._flush(display)
            if trainer.update_due() and _signal(interrupts) > 0:
                return  # the resumed run makes the remaining updates
        if (seconds := trainer.compile_seconds) is not None and not self._reported_compile:
            self._reported_compile = True
            self.journal.log({"time/compile_seconds": seconds})
            display.say(f"compiled in {seconds:.0f} s")
        self.writer.raise_pending()
        if trainer.updates == 0:
            self.remaining.restart()
        display.update(trainer.env_step, updates=str(trainer.updates), left=self._left())
        ending = trainer.policy_step >= config.algo.total_steps
        due = _crossed(trainer, config.eval.every) and trainer.updates > 0 and not ending
        if due and self.tracker is not None:
            display.update(trainer.env_step, left="evaluating")
            with self.remaining.evaluation():
                with trainer.clock.stage("evaluation"):
                    result = self._evaluate(config.eval.episodes, config.seed)
                self.journal.log(result.metrics())
                self._maybe_save_best(result)
            display.say(
                f"evaluation at env step {trainer.env_step}: {result} "
                f"over {config.eval.episodes} episodes"
            )
        if _crossed(trainer, config.checkpoint.every) and not ending:
            self._save(display)

    def _left(self) -> str:
        """Format the time that the run will still take; `-` before its first updates."""
        config, trainer = self.config, self.trainer
        total, every = config.algo.total_steps, config.eval.every
        # The evaluation at the last step is one of the last evaluations.
        during = (total - 1) // every - trainer.policy_step // every if every > 0 else 0
        evaluations = max(0, during) + 1 + config.eval.keep_best
        updates = trainer.optimizer.total_updates - trainer.updates
        return duration(self.remaining.seconds(max(0, updates), evaluations))

    def _collect(self, display: Display) -> None:
        for episode in self.trainer.collect_step():
            metrics = {"episode/return": episode.episode_return, "episode/length": episode.length}
            self.journal.log({name: float(value) for name, value in metrics.items()})
            display.update(self.trainer.env_step, episode_return=f"{episode.episode_return:.0f}")

    def _flush(self, display: Display) -> None:
        """Log the updates since the last call."""
        if not self._pending:
            return
        self.trainer.skipped.sync()
        metrics = self.journal.log_updates(self._pending)
        self.remaining.count_updates(len(self._pending))
        self._pending.clear()
        display.update(
            self.trainer.env_step,
            updates=str(self.trainer.updates),
            loss=f"{metrics['world_model/loss']:.2f}",
            speed=f"{metrics['time/updates_per_second']:.1f}",
        )

    def _save(self, display: Display, *, ending: bool = False) -> None:
        """Start writing a checkpoint; wait for it if it is the last."""
        trainer = self.trainer
        self._flush(display)  # a resumed run would lose metrics that are not logged yet
        if norms := trainer.adapter_norms():
            self.journal.log(norms)
        with trainer.clock.stage("checkpoint"):
            trainer_state = trainer.state_dict()
            if (tracker := self.tracker) is not None:
                flush = trainer.replay.make_flush()

                def before() -> None:
                    flush()
                    tracker.flush()

                state = {"trainer": trainer_state, "metrics_offset": tracker.offset()}
                self.writer.save(state, trainer.policy_step, before)
            if ending:
                self.writer.wait()
                # torchrun ends all processes when one exits, so all wait while rank 0 writes.
                distributed.barrier()
        if ending and (metrics := self.writer.take_metrics()):
            self.journal.log(metrics)

    def _finish(self) -> TrainResult | None:
        """Make the final evaluation and write the artifacts.

        Rank 0 returns the result; the others return None.
        """
        if self.tracker is None:
            return None
        config, trainer = self.config, self.trainer
        print_line(f"trained {trainer.env_step} env steps; now the last evaluations")
        result = self._evaluate(config.eval.final_episodes, config.seed)
        self.journal.log(result.metrics())
        # With only one evaluation there is nothing to select.
        if self.best is not None and self.best.policy_step is not None:
            self._maybe_save_best(result)
        if config.eval.open_loop_windows > 0:
            self._evaluate_open_loop(self.tracker)
        if config.eval.video:
            path = self.run_dir / "policy.gif"
            greedy = config.eval.greedy
            with only_shown("video"):
                video = record_video(trainer.agent, config.env, config.seed, path, greedy=greedy)
                self.tracker.log_artifact(video)
        best = self._evaluate_best()
        with only_shown("plot"):
            self.tracker.log_artifact(plot_returns(self.run_dir))
        if config.tracking.upload_checkpoints:
            if (checkpoint := self.writer.checkpoints.newest_path) is not None:
                self.tracker.log_artifact(checkpoint, "checkpoints")
            if best is not None:
                self.tracker.log_artifact(self.run_dir / BEST_FOLDER)
        metrics = [objective.metric for objective in parse_objectives(config.objective)]
        if missing := [metric for metric in metrics if metric not in self.journal.newest]:
            raise ConfigError(never_logged_message(missing, self.journal.newest))
        checkpoints = self.writer.checkpoints.describe(
            trainer.policy_step, config.env.action_repeat
        )
        print_line(
            summary(config, self.run_dir, result, best, checkpoints, self.tracker.ui_command)
        )
        return TrainResult(self.journal.newest[metrics[0]], result)

    def _evaluate(self, episodes: int, seed: int) -> Evaluation:
        config = self.config
        agent, greedy = self.trainer.agent, config.eval.greedy
        return evaluate(agent, config.env, episodes, seed, greedy=greedy)

    def _maybe_save_best(self, result: Evaluation) -> None:
        """Save the agent if it seems to be the best so far and more episodes confirm it.

        All candidates are evaluated on the same further episodes. With the few episodes of one evaluation,
        the luckiest candidate would be selected.
        """
        config, trainer = self.config, self.trainer
        if not config.eval.keep_best or self.best is None or result.mean < self.best.mean:
            return
        with trainer.clock.stage("evaluation"):
            seed = config.seed + SeedOffset.SELECTION
            result = self._evaluate(config.eval.final_episodes, seed)
        with trainer.clock.stage("checkpoint"):
            self.best.save_if_best(trainer.agent, result, trainer.policy_step)

    def _evaluate_best(self) -> BestPolicyResult | None:
        """Load the best policy into the agent and evaluate it on episodes not used to select it."""
        config = self.config
        if not config.eval.keep_best or self.best is None or self.best.policy_step is None:
            return None
        self.best.restore(self.trainer.agent)
        result = self._evaluate(config.eval.final_episodes, config.seed + SeedOffset.FINAL)
        self.journal.log({"eval/best_return": result.mean, "eval/best_return_sd": result.deviation})
        return BestPolicyResult(result, self.best.policy_step * config.env.action_repeat)

    def _evaluate_open_loop(self, tracker: Tracker) -> None:
        """Measure the open-loop error of the world model."""
        config, trainer = self.config, self.trainer
        windows = config.eval.open_loop_windows
        open_loop = evaluate_open_loop(trainer.agent, config, windows, config.seed)
        self.journal.log(open_loop.metrics())
        tracker.log_artifact(open_loop.save(self.run_dir / FILE))


def _signal(interrupts: Interrupts) -> int:
    """Return the signal received by any process, or 0."""
    return distributed.all_reduce_max(interrupts.received or 0)


def _crossed(trainer: Trainer, every: int) -> bool:
    """Return True if the last policy step passed a multiple of `every`; False if that is 0."""
    before = trainer.policy_step - trainer.config.env.num_envs * distributed.size()
    return every > 0 and trainer.policy_step // every > before // every
