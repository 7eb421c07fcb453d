"""An Optuna study that ends with exactly `n_trials` trials, even if its drivers or trials are killed.

A trial keeps its number, parameters and folder. If its driver dies, it stays RUNNING in the storage
until another driver takes it over. Drivers take over old trials and ask for new ones under the same
lock, so the number of trials is exact and no trial runs twice.
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from llmdreamer.config import GROUPS, Config
from llmdreamer.config.objective import NEVER_LOGGED, Curve
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import (
    ResultRow,
    make_shortener,
    missing_objective,
    objective_values,
)
from llmdreamer.sweep.run_folder import Curves
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.sweep.studies.budget import FLOPS_ATTRIBUTE, Budget, run_flops
from llmdreamer.sweep.studies.constraints import NotMeasured, broken_constraints, set_constraints
from llmdreamer.sweep.studies.distributions import search_space
from llmdreamer.sweep.studies.draws import draw_params
from llmdreamer.sweep.studies.retries import StorageLost
from llmdreamer.sweep.studies.running_trial import RunningTrial
from llmdreamer.sweep.studies.samplers import check_sampler, make_pruner
from llmdreamer.sweep.studies.search_space import (
    check_signature,
    check_study_settings,
    first_value,
    invalid_param,
    params_in_space,
    to_overrides,
    trial_budget,
    unknown_params,
    write_signature,
)
from llmdreamer.sweep.studies.start import start_points
from llmdreamer.sweep.studies.storage import OWNER_ATTRIBUTE, DriverHeartbeat, StudyStorage
from llmdreamer.tracking import TrackingError, resolve_uri
from llmdreamer.tracking.parent import tag_run
from llmdreamer.tracking.trial import VARIANT_TAG
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import as_typed, redact_message

log = logging.getLogger(__name__)
T = TypeVar("T")
optuna.logging.set_verbosity(optuna.logging.WARNING)  # the driver logs its runs itself
_FINAL_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Study:
    """The source of a study's runs.

    Args:
        arm: the arm whose overrides all trials share.
        name: the study's name if it is one of several; its folder is then a subfolder for the arm.

    Raises:
        ConfigError: for a mistake in the settings, or if the stored study searches something else.
    """

    def __init__(self, plan: Plan, arm: str = "", name: str | None = None) -> None:
        self._plan = plan
        self._arm, self._arm_name = plan.arms[arm], arm
        self.name = name or plan.name
        self._folder = plan.folder if name is None else plan.folder / arm
        self._space = search_space(plan.swept)
        self.n_trials = trial_budget(plan, self._space)
        self._pruner = make_pruner(plan)
        check_study_settings(plan)
        check_sampler(plan, self._space)
        self._first_point = self._compose_space()
        self._start = start_points(plan, self._space, self._arm)
        settings = plan.settings
        self._storage = StudyStorage(settings.storage, self._folder, settings.heartbeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = self._storage.section(self.name, self._open)
        self._budget = Budget(settings, self._study)
        if settings.n_trials is not None and self.n_trials < settings.n_trials:
            message = (
                "hydra.sweeper.n_trials=%d: the study ends after %d, all combinations that exist"
            )
            log.info(message, settings.n_trials, self.n_trials)
        self._storage.retries.sweep_has_started = True
        self._heartbeat = DriverHeartbeat(self._folder, self._storage)
        self._running_trials: dict[int, RunningTrial] = {}
        self._has_logged_waiting = self._has_logged_budget = False
        self._rows: list[ResultRow] = []

    def _compose_space(self) -> Config:
        """Compose the first point of the space, and every option of a swept group.

        An option that does not exist is then reported before any run.
        """
        first = {key: first_value(distribution) for key, distribution in self._space.items()}
        config = self._plan.compose([*self._plan.fixed, *to_overrides(first), *self._arm])
        for key in (key for key in self._space if key in GROUPS):
            for value in getattr(self._space[key], "choices", ())[1:]:
                point = [*self._plan.fixed, *to_overrides(first | {key: value}), *self._arm]
                try:
                    self._plan.compose(point)
                except ConfigError:
                    pass  # it may be valid with other values; else the trial reports it
        return config

    def _open(self) -> optuna.Study:
        storage = self._storage.optuna
        direction = optuna.study.StudyDirection
        directions = [
            direction.MAXIMIZE if maximize else direction.MINIMIZE
            for maximize in self._plan.maximize
        ]
        # List the folders before the trials: another driver creates a trial first, then its folder.
        numbers = [int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdigit()]
        exists = self.name in optuna.get_all_study_names(storage)
        if exists:
            study = optuna.load_study(study_name=self.name, storage=storage)
            check_signature(study, self._plan, self._space, self._first_point)
        self._refuse_unknown_folders(numbers, len(study.trials) if exists else 0)
        if not exists:
            study = optuna.create_study(
                study_name=self.name, storage=storage, directions=directions
            )
        write_signature(study, self._plan, self._space, self._first_point)
        study.pruner = self._pruner  # samplers read it too, for Hyperband's brackets
        study.sampler = RandomSampler()  # only until a trial is drawn: see `draws`
        return study

    def _refuse_unknown_folders(self, numbers: list[int], trial_count: int) -> None:
        """Refuse folders of trials that the study never had: a new trial would resume their runs."""
        if unknown := [number for number in numbers if number >= trial_count]:
            raise ConfigError(
                f"{self._folder / str(min(unknown))} belongs to a study that is not in this database:"
                " set another hydra.sweeper.study_name, or the storage that it was made with"
            )

    # --- the interface to the pool ---

    def next_task(self) -> RunTask | None:
        for running_trial in self._running_trials.values():
            if running_trial.tasks and not running_trial.is_stopped:
                running_trial.running += 1
                return running_trial.tasks.pop(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about heartbeats outside `optimize`, which we send
            trial = self._storage.section(self.name, self._next_trial)
        if trial is None or self._is_refused(trial):
            return None
        running_trial = self._start_trial(trial)
        running_trial.running += 1
        return running_trial.tasks.pop(0)

    def _next_trial(self) -> Trial | None:
        """Take over a trial or make a new one. The caller holds the study's lock.

        If the database fails in between, the trial may be ours and not run yet: it is taken over next time.
        """
        self._budget.count()
        started = [trial for trial in self._trials() if trial.state is not TrialState.WAITING]
        return self._take_over(started) or self._ask(started)

    def _take_over(self, started: list[FrozenTrial]) -> Trial | None:
        """Take over the first trial whose driver is dead."""
        stale_ids = None
        for frozen in started:
            if frozen.state is not TrialState.RUNNING or frozen.number in self._running_trials:
                continue
            is_dead = self._heartbeat.is_dead(frozen.user_attrs.get(OWNER_ATTRIBUTE))
            if is_dead is None:
                if stale_ids is None:
                    storage = self._storage.optuna
                    stale_ids = storage._get_stale_trial_ids(self._study._study_id)
                is_dead = frozen._trial_id in stale_ids
            if is_dead:
                return self._claim(Trial(self._study, frozen._trial_id))
        return None

    def _ask(self, started: list[FrozenTrial]) -> Trial | None:
        if len(started) >= self.n_trials or self._is_budget_spent(started):
            return None
        return self._claim(self._study.ask())

    def _claim(self, trial: Trial) -> Trial | None:
        """Make this driver the owner, then draw the parameters; those that are drawn already stay.

        Returns:
            None if the trial must not run. A driver that seemed dead has just ended it; or it is failed here,
            because a stored value is not in the search space; or pruned, because another trial has its
            parameters.
        """
        try:
            trial.set_user_attr(OWNER_ATTRIBUTE, self._heartbeat.driver)
        except UpdateFinishedTrialError:
            return None
        stored = self._storage.optuna.get_trial(trial._trial_id)
        if unknown := unknown_params(stored, self._space):
            names = ", ".join(unknown)
            log.warning("trial %d: ignored keys that are not swept: %s", trial.number, names)
        if (key := invalid_param(stored, self._space)) is not None:
            self._fail(trial, f"the database has a value of {key} that is not in the search space")
            return None
        reason = draw_params(self._study, trial._trial_id, self._plan, self._space, self._start)
        if reason is not None:
            self._prune(trial, reason)
            return None
        self._heartbeat.add_trial(trial._trial_id)
        return Trial(self._study, trial._trial_id)

    def _is_refused(self, trial: Trial) -> bool:
        """Measure what a trial costs, and end it if it breaks a constraint or cannot be measured."""
        limits = self._plan.settings.constraints.limits()
        if not limits:
            return False
        params = to_overrides(params_in_space(trial.params, self._space))
        try:
            config = self._plan.compose([*self._plan.fixed, *params, *self._arm])
            set_constraints(trial, config, limits)
        except (ConfigError, NotMeasured) as error:
            self._fail(trial, str(error))
            return True
        reason = broken_constraints(trial, limits)
        if reason is not None:
            self._prune(trial, reason)
        return reason is not None

    def _fail(self, trial: Trial, cause: str) -> None:
        """End a trial that cannot run."""
        log.error("failed trial %d: %s", trial.number, cause)
        trial.set_user_attr("exit_code", ConfigError.exit_code)
        self._end_without_run(trial, cause, TrialState.FAIL)

    def _prune(self, trial: Trial, cause: str) -> None:
        """End a trial that must not run."""
        log.info("refused trial %d: %s", trial.number, cause)
        self._end_without_run(trial, cause, TrialState.PRUNED)

    def _end_without_run(self, trial: Trial, cause: str, state: TrialState) -> None:
        trial.set_user_attr("cause", cause)
        self._tell(trial, None, state)
        self._heartbeat.remove_trial(trial._trial_id)

    def _start_trial(self, trial: Trial) -> RunningTrial:
        plan, params = self._plan, to_overrides(params_in_space(trial.params, self._space))
        label, shorten = " ".join(params), make_shortener(self._space)
        overrides = [*plan.fixed, *params, *self._arm]
        trial_folder = self._folder / str(trial.number)
        is_single = len(plan.seeds) == 1
        tasks = []
        for index, seed in enumerate(plan.seeds):
            run_overrides = [*overrides, f"seed={seed}"]
            tags = {"sweep": self.name, "trial": str(trial.number)}
            tags["overrides"] = as_typed(run_overrides)
            variant = f"#{trial.number} {shorten(label)}" + ("" if is_single else f" seed={seed}")
            tags[VARIANT_TAG] = redact_message(variant)
            folder = trial_folder if is_single else trial_folder / f"seed-{seed}"
            run_label = f"trial {trial.number} {label}" + ("" if is_single else f" seed={seed}")
            tasks.append(RunTask(folder, run_overrides, tags, run_label, (trial.number, index)))
        reported = self._storage.optuna.get_trial(trial._trial_id).intermediate_values
        running_trial = RunningTrial(trial, tasks, reported=set(reported))
        self._running_trials[trial.number] = running_trial
        return running_trial

    def is_done(self) -> bool:
        """Return True if all trials have ended.

        A trial that another driver runs has not: if that driver dies, this one takes the trial over.
        """
        if self._running_trials:
            return False
        trials = self._trials()
        unfinished = sum(trial.state not in _FINAL_STATES for trial in trials)
        if unfinished and not self._has_logged_waiting:
            self._has_logged_waiting = True
            log.info("waiting for %d trials of other drivers", unfinished)
        is_complete = len(trials) >= self.n_trials or self._is_budget_spent(trials)
        return not unfinished and is_complete

    def _is_budget_spent(self, trials: list[FrozenTrial]) -> bool:
        running = (sum(trial.flops.values()) for trial in self._running_trials.values())
        budget = self._budget.spent(trials, running)
        if budget is not None and not self._has_logged_budget:
            self._has_logged_budget = True
            log.info("%s is spent: no further trial starts", budget)
        return budget is not None

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        """Report the objective by env step if there is one seed. With several, each seed is a step."""
        running_trial = self._running_trials[task.key[0]]
        running_trial.flops[task.key[1]] = run_flops(curves)
        if self._budget.is_due():
            self._storage.section(self.name, self._budget.count)
        if self._plan.settings.pruner == "none" or len(self._plan.seeds) > 1:
            return running_trial.is_pruned or running_trial.has_ended
        objective = self._plan.objectives[0]
        curve: Curve = curves.get(objective.metric, [])
        for count, (step, _) in enumerate(curve, 1):
            if step in running_trial.reported:
                continue
            value = objective.value(curve[:count], maximize=self._plan.maximize[0])
            self._report(running_trial, value, step)
        return running_trial.is_pruned or running_trial.has_ended

    def _report(self, running_trial: RunningTrial, value: float, step: int) -> None:
        if step not in running_trial.reported:  # a resumed run logs some steps a second time
            running_trial.reported.add(step)
            running_trial.write(lambda: running_trial.trial.report(value, step))
        if not running_trial.is_stopped and running_trial.trial.should_prune():
            running_trial.is_pruned = True

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        number, seed_index = task.key
        running_trial = self._running_trials[number]
        running_trial.running -= 1
        running_trial.flops[seed_index] = run_flops(outcome.curves)
        running_trial.env_step = max(running_trial.env_step, outcome.env_step)
        if outcome.kind == "failed":
            if NEVER_LOGGED in outcome.cause:
                # All trials would fail so; the study can be resumed.
                raise ConfigError(outcome.cause)
            running_trial.failure = outcome
        if outcome.kind == "finished":
            self._record_value(running_trial, seed_index, outcome)
        if not running_trial.running and (running_trial.is_stopped or not running_trial.tasks):
            running_trial.write(lambda: self._end_trial(running_trial))
            self._heartbeat.remove_trial(running_trial.trial._trial_id)
            del self._running_trials[number]

    def _record_value(
        self, running_trial: RunningTrial, seed_index: int, outcome: RunOutcome
    ) -> None:
        values = objective_values(self._plan, outcome.curves)
        if values is None:
            raise ConfigError(missing_objective(self._plan, outcome.curves))
        if not all(map(math.isfinite, values)):
            cause = f"the objective is {', '.join(map(str, values))}"
            running_trial.failure = RunOutcome("failed", outcome.curves, outcome.env_step, cause, 1)
            return
        running_trial.values[seed_index] = values
        if len(self._plan.seeds) == 1 or self._plan.settings.pruner == "none":
            return
        if self._plan.settings.pruner == "wilcoxon":  # compares trials seed by seed
            self._report(running_trial, values[0], seed_index)
        else:  # compares means over the same number of seeds
            count = len(running_trial.values)
            total = sum(seed_values[0] for seed_values in running_trial.values.values())
            self._report(running_trial, total / count, count)

    def _end_trial(self, running_trial: RunningTrial) -> None:
        trial, state, values = running_trial.trial, TrialState.COMPLETE, None
        trial.set_user_attr("env_step", running_trial.env_step)
        trial.set_user_attr(FLOPS_ATTRIBUTE, sum(running_trial.flops.values()))
        if running_trial.failure is not None:
            state = TrialState.FAIL
            trial.set_user_attr("cause", running_trial.failure.cause)
            trial.set_user_attr("exit_code", running_trial.failure.exit_code)
        elif len(running_trial.values) < len(self._plan.seeds):
            state = TrialState.PRUNED
            self._tag_pruned(running_trial)
        else:
            columns = zip(*running_trial.values.values(), strict=True)
            values = [sum(column) / len(column) for column in columns]
        self._tell(trial, values, state)

    def _tell(self, trial: Trial, values: list[float] | None, state: TrialState) -> None:
        # If this driver was silent for too long, another one may have ended the trial.
        self._study.tell(trial, values=values, state=state, skip_if_finished=True)

    def _tag_pruned(self, running_trial: RunningTrial) -> None:
        """Tag the trial's MLflow runs, whose status is KILLED, with the reason."""
        number = running_trial.trial.number
        folder = self._folder / str(number)
        try:
            uri = resolve_uri(self._plan.base.tracking.uri, Path.cwd())
            for run in [folder, *folder.glob("seed-*")]:
                tag_run(run, uri, "pruned", f"at env step {running_trial.env_step}")
        except (TrackingError, ConfigError) as error:
            log.warning("trial %d has no tag 'pruned': %s", number, error)

    def interrupt(self) -> None:
        self._storage.retries.is_interrupted = True

    def close(self) -> None:
        self._heartbeat.close()

    # --- the results ---

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def total(self) -> int:
        trials = self._trials()
        return len(trials) if self._is_budget_spent(trials) else self.n_trials

    @property
    def rows(self) -> list[ResultRow]:
        """The trials as they are or, once the database is lost, as they were when last read."""
        with suppress(StorageLost):
            self._rows = [self._row(trial) for trial in self._trials()]
        return self._rows

    def _row(self, trial: FrozenTrial) -> ResultRow:
        states = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}
        params = to_overrides(params_in_space(trial.params, self._space))
        return ResultRow(
            label=" ".join([f"{self.name if self._arm else ''} {trial.number}".strip(), *params]),
            group=f"{self.name} {trial.number}",
            seed=self._plan.seeds[0] if len(self._plan.seeds) == 1 else None,
            overrides=as_typed([*self._plan.fixed, *params, *self._arm]),
            number=trial.number,
            arm=self._arm_name,
            params=" ".join(params),
            folder=str(self._folder / str(trial.number)),
            state=states.get(trial.state, trial.state.name.lower()),
            env_step=_user_attribute(trial, "env_step", 0),
            values=list(trial.values) if trial.state is TrialState.COMPLETE else [],
            cause=_user_attribute(trial, "cause", ""),
            exit_code=_user_attribute(trial, "exit_code", 0),
        )


def _user_attribute(trial: FrozenTrial, name: str, default: T) -> T:
    """Return an attribute that a driver wrote; the default if there is none, or one of another type."""
    value = trial.user_attrs.get(name, default)
    return value if type(value) is type(default) else default
