"""An Optuna study that ends with exactly `n_trials`, however often its drivers or trials are killed.

A trial keeps its number, parameters and folder for life. One whose driver died stays RUNNING in the
storage, and whichever driver comes next takes it over, under the same lock that guards asking for
new ones: so the number of trials is exact, and nothing is run twice.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from llmdreamer.config import GROUPS, Config
from llmdreamer.config.objective import NEVER_LOGGED, Curve
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import ResultRow, missing_objective, objective_values
from llmdreamer.sweep.run_folder import Curves
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.sweep.studies.samplers import make_pruner, make_sampler
from llmdreamer.sweep.studies.search_space import (
    assigned,
    budget,
    check,
    first_of,
    refuse_another,
    sign,
    space,
)
from llmdreamer.sweep.studies.storage import OWNER, Life, Store
from llmdreamer.tracking import TrackingError, resolve_uri
from llmdreamer.tracking.parent import tag_run
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import as_typed

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)  # what happens is told by us
_FINAL = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Live:
    """A trial that this driver runs: one run for each seed."""

    trial: Trial
    label: str
    due: list[RunTask]
    running: int = 0
    values: dict[int, list[float]] = field(default_factory=dict)  # of the finished, by seed's place
    reported: set[int] = field(default_factory=set)
    env_step: int = 0
    is_pruned: bool = False
    failure: RunOutcome | None = None


class Study:
    """The source of a study's runs."""

    def __init__(self, plan: Plan, arm: str = "", name: str | None = None) -> None:
        self._plan = plan
        self._arm, self._arm_name = plan.arms[arm], arm
        self.name = name or plan.name
        self._folder = plan.folder if name is None else plan.folder / arm
        self._space = space(plan.swept)
        self.n_trials = budget(plan, self._space)
        self._pruner = make_pruner(plan)
        check(plan)
        make_sampler(plan, self._space, 0)  # a mistake in its options is told now
        self._point = self._try_out()
        store = plan.settings.storage
        self._store = Store(store, self._folder, plan.settings.heartbeat)
        with self._store.alone(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = self._open()
        self._life = Life(self._folder, self._store)
        self._live: dict[int, Live] = {}
        self._told_waiting = False

    def _try_out(self) -> Config:
        """The space's first point; of groups, every option is composed: what does not exist is told now."""
        first = {key: first_of(distribution) for key, distribution in self._space.items()}
        found = self._plan.compose([*self._plan.fixed, *assigned(first), *self._arm])
        for key in (key for key in self._space if key in GROUPS):
            for value in getattr(self._space[key], "choices", ())[1:]:
                point = [*self._plan.fixed, *assigned(first | {key: value}), *self._arm]
                try:
                    self._plan.compose(point)
                except ConfigError:
                    pass  # beside other values it may do: the trial will tell
        return found

    def _open(self) -> optuna.Study:
        kinds = optuna.study.StudyDirection
        directions = [kinds.MAXIMIZE if one else kinds.MINIMIZE for one in self._plan.maximize]
        # Before the trials are counted: another driver makes a trial's folder after it is in the study.
        folders = [int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdigit()]
        known = self.name in optuna.get_all_study_names(self._store.optuna)
        if known:
            study = optuna.load_study(study_name=self.name, storage=self._store.optuna)
            refuse_another(study, self._plan, self._space, self._point)
        self._refuse_leftover(folders, len(study.trials) if known else 0)
        if not known:
            study = optuna.create_study(
                study_name=self.name, storage=self._store.optuna, directions=directions
            )
        sign(study, self._plan, self._space, self._point)
        study.pruner = self._pruner  # Hyperband's brackets are asked for by samplers, too
        return study

    def _refuse_leftover(self, folders: list[int], count: int) -> None:
        """Folders of trials that this study never had: what is in them would be taken for its results."""
        if strange := [number for number in folders if number >= count]:
            raise ConfigError(
                f"{self._folder / str(min(strange))} is of a study that this database does not know:"
                " use a new hydra.sweeper.study_name, or the storage that it was made with"
            )

    # --- what the pool asks ---

    def next_task(self) -> RunTask | None:
        for live in self._live.values():
            if live.due and not live.is_pruned and live.failure is None:
                live.running += 1
                return live.due.pop(0)
        with self._store.alone(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of heartbeats outside `optimize`: we beat ourselves
            begun = [one for one in self._trials() if one.state is not TrialState.WAITING]
            trial = self._take_over(begun) or self._ask(len(begun))
        if trial is None:
            return None
        live = self._begin(trial)
        live.running += 1
        return live.due.pop(0)

    def _take_over(self, begun: list[FrozenTrial]) -> Trial | None:
        """The first trial whose driver is dead, as ours."""
        stale = None
        for frozen in begun:
            if frozen.state is not TrialState.RUNNING or frozen.number in self._live:
                continue
            dead = self._life.is_dead(frozen.user_attrs.get(OWNER))
            if dead is None:
                if stale is None:
                    stale = self._store.optuna._get_stale_trial_ids(self._study._study_id)
                dead = frozen._trial_id in stale
            if dead:
                self._study.sampler = make_sampler(self._plan, self._space, frozen.number)
                return self._sign(Trial(self._study, frozen._trial_id))
        return None

    def _ask(self, begun: int) -> Trial | None:
        if begun >= self.n_trials:
            return None
        self._study.sampler = make_sampler(self._plan, self._space, begun)
        return self._sign(self._study.ask())

    def _sign(self, trial: Trial) -> Trial:
        """Make the trial ours, then draw its parameters: those drawn before a kill stay."""
        trial.set_user_attr(OWNER, self._life.name)
        self._life.begin(trial._trial_id)
        for name, distribution in self._space.items():
            trial._suggest(name, distribution)
        return trial

    def _begin(self, trial: Trial) -> Live:
        plan, label = self._plan, " ".join(assigned(trial.params))
        overrides = [*plan.fixed, *assigned(trial.params), *self._arm]
        folder = self._folder / str(trial.number)
        due = []
        for place, seed in enumerate(plan.seeds):
            full = [*overrides, f"seed={seed}"]
            tags = {"sweep": self.name, "trial": str(trial.number)}
            tags["overrides"] = as_typed(full)
            where = folder if len(plan.seeds) == 1 else folder / f"seed-{seed}"
            told = f"trial {trial.number} {label}"
            told += f" seed={seed}" if len(plan.seeds) > 1 else ""
            due.append(RunTask(where, full, tags, told, (trial.number, place)))
        before = self._store.optuna.get_trial(trial._trial_id).intermediate_values
        live = Live(trial, label, due, reported=set(before))
        self._live[trial.number] = live
        return live

    def is_done(self) -> bool:
        """Not while another driver runs a trial: should it die, the trial is ours."""
        if self._live:
            return False
        trials = self._trials()
        unfinished = sum(trial.state not in _FINAL for trial in trials)
        if unfinished and not self._told_waiting:
            self._told_waiting = True
            log.info("waiting for %d trials of other drivers", unfinished)
        return not unfinished and len(trials) >= self.n_trials

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        """Report a lone run's objective by env step; with several seeds, each seed is a step."""
        if self._plan.settings.pruner == "none" or len(self._plan.seeds) > 1:
            return self._live[task.key[0]].is_pruned
        live, objective = self._live[task.key[0]], self._plan.objectives[0]
        curve: Curve = curves.get(objective.metric, [])
        for count, (step, _) in enumerate(curve, 1):
            if step in live.reported:
                continue
            value = objective.value(curve[:count], maximize=self._plan.maximize[0])
            self._report(live, value, step)
        return live.is_pruned

    def _report(self, live: Live, value: float, step: int) -> None:
        if step not in live.reported:  # a resumed run tells some of its steps again
            live.reported.add(step)
            live.trial.report(value, step)
        if not live.is_pruned and live.trial.should_prune():
            live.is_pruned = True

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        number, place = task.key
        live = self._live[number]
        live.running -= 1
        live.env_step = max(live.env_step, outcome.env_step)
        if outcome.kind == "failed":
            if NEVER_LOGGED in outcome.cause:
                raise ConfigError(outcome.cause)  # as with all others; the same study goes on
            live.failure = outcome
        if outcome.kind == "finished":
            self._take_value(live, place, outcome)
        wanted = [] if live.failure or live.is_pruned else live.due
        if not live.running and not wanted:
            self._tell(live)

    def _take_value(self, live: Live, place: int, outcome: RunOutcome) -> None:
        values = objective_values(self._plan, outcome.curves)
        if values is None:
            raise ConfigError(missing_objective(self._plan, outcome.curves))
        if not all(map(math.isfinite, values)):
            cause = f"the objective is {', '.join(map(str, values))}"
            live.failure = RunOutcome("failed", outcome.curves, outcome.env_step, cause, 1)
            return
        live.values[place] = values
        if len(self._plan.seeds) == 1 or self._plan.settings.pruner == "none":
            return
        if self._plan.settings.pruner == "wilcoxon":  # compares seed with seed
            self._report(live, values[0], place)
        else:  # compare the mean of as many
            count = len(live.values)
            self._report(live, sum(one[0] for one in live.values.values()) / count, count)

    def _tell(self, live: Live) -> None:
        trial, state, values = live.trial, TrialState.COMPLETE, None
        trial.set_user_attr("env_step", live.env_step)
        if live.failure is not None:
            state = TrialState.FAIL
            trial.set_user_attr("cause", live.failure.cause)
            trial.set_user_attr("exit_code", live.failure.exit_code)
        elif len(live.values) < len(self._plan.seeds):
            state = TrialState.PRUNED
            self._tag_pruned(live)
        else:
            columns = zip(*live.values.values(), strict=True)
            values = [sum(column) / len(column) for column in columns]
        try:
            # Where we were silent for too long, another driver may have ended it.
            self._study.tell(trial, values=values, state=state, skip_if_finished=True)
        except RuntimeError as error:
            if "Study.stop" not in str(error):  # GridSampler says so at its last point
                raise
        self._life.end(trial._trial_id)
        del self._live[trial.number]

    def _tag_pruned(self, live: Live) -> None:
        """MLflow knows the run as KILLED: say why."""
        folder = self._folder / str(live.trial.number)
        try:
            uri = resolve_uri(self._plan.base.tracking.uri, Path.cwd())
            for run in [folder, *folder.glob("seed-*")]:
                tag_run(run, uri, "pruned", f"at env step {live.env_step}")
        except (TrackingError, ConfigError) as error:
            log.warning("trial %d has no tag 'pruned': %s", live.trial.number, error)

    def close(self) -> None:
        self._life.close()

    # --- what is told of it ---

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def total(self) -> int:
        return self.n_trials

    @property
    def rows(self) -> list[ResultRow]:
        return [self._row(trial) for trial in self._trials()]

    def _row(self, trial: FrozenTrial) -> ResultRow:
        states = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}
        values = assigned(trial.params)
        return ResultRow(
            label=" ".join([f"{self.name if self._arm else ''} {trial.number}".strip(), *values]),
            group=f"{self.name} {trial.number}",
            seed=self._plan.seeds[0] if len(self._plan.seeds) == 1 else None,
            overrides=as_typed([*self._plan.fixed, *values, *self._arm]),
            number=trial.number,
            arm=self._arm_name,
            params=" ".join(values),
            folder=str(self._folder / str(trial.number)),
            state=states.get(trial.state, trial.state.name.lower()),
            env_step=trial.user_attrs.get("env_step", 0),
            values=list(trial.values) if trial.state is TrialState.COMPLETE else [],
            cause=trial.user_attrs.get("cause", ""),
            exit_code=trial.user_attrs.get("exit_code", 0),
        )
