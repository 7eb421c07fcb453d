"""Environments stepped side by side, each reset only when it is told to be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs.actions import Actions
from llmdreamer.envs.observations import Observation
from llmdreamer.envs.plain import from_plain, to_plain
from llmdreamer.envs.simulator import (
    Frames,
    LocalSeat,
    Make,
    ProcessSeat,
    Row,
    Seat,
    SimulatorError,
)
from llmdreamer.types import EnvSpec, TimeStep
from llmdreamer.utils.errors import ConfigError

log = logging.getLogger(__name__)
traces = logging.getLogger("llmdreamer.traces")
"""Only a run's `run.log` has them: conf/hydra/job_logging."""


class EnvError(RuntimeError):
    """An environment failed once too often: which one, at which policy step, and the last cause."""

    exit_code = 1

    def __init__(self, index: int, step: int, cause: str) -> None:
        super().__init__(f"environment {index}, policy step {step}: {cause}")
        self.index = index
        self.step = step
        self.cause = cause


@dataclass(frozen=True)
class VectorOptions:
    """How a vector treats its environments; the meanings are in `conf/config.yaml`, under env."""

    frames: Frames = field(default_factory=Frames)
    action_repeat: int = 1  # told on `spec`; the environments already repeat
    processes: bool = False
    max_restarts: int = 0
    timeout: float | None = None


class VectorEnv:
    """n environments of one kind, in this process or each in one of its own.

    There is no autoreset: after an episode's last row the caller resets that environment, so every
    row an episode shows is seen once and in order.

    An environment that raises, shows a number that is not finite, or whose process dies or does not
    answer is made anew, `max_restarts` times in all. Then `step` returns the first row of its next
    episode: the one under way ended, cut off, with the row before.

    Args:
        makers: of environments alike, at least one. To run in processes they must pickle.
        seed: of the whole vector. The first reset of environment i takes the seed of a child of its
            own, whatever n is; later resets go on with the environment's generator.

    Raises:
        ConfigError: if a space is of an unsupported kind, or an environment cannot be made.
    """

    def __init__(self, makers: Sequence[Make], seed: int, options: VectorOptions | None = None):
        assert makers, "at least one environment"
        self._makers = list(makers)
        self._options = options or VectorOptions()
        self._seats: list[Seat] = []
        try:
            self._fill_seats()
        except BaseException:
            self.close()
            raise
        self._keys, self._actions = self._seats[0].keys, self._seats[0].actions
        self.num_envs = len(makers)
        self.spec = spec_of(self._keys, self._actions, self._options.action_repeat)
        self._seed = seed
        self._pending_seeds: list[int | None] = []
        self.seed_anew()
        self._steps = [0] * self.num_envs
        self._restarts = 0
        self._started = np.zeros(self.num_envs, np.bool_)
        self._rows = self._blank_rows()

    def reset(self, mask: NDArray[np.bool_] | None = None) -> TimeStep:
        """Start an episode where `mask` (n,) is true, everywhere if it is None.

        Returns:
            All n rows; those not in the mask stay as they were, `is_first` included.

        Raises:
            EnvError: if an environment fails, more than `max_restarts` times.
        """
        mask = np.ones(self.num_envs, np.bool_) if mask is None else mask
        assert mask.shape == (self.num_envs,) and mask.dtype == np.bool_, mask
        assert (self._started | mask).all(), "the first reset is of all environments"
        indices = np.flatnonzero(mask).tolist()
        for i in indices:
            self._seats[i].send("reset", self._pending_seeds[i])
        for i in indices:
            self._begin(i)
        return self._copy_rows()

    def step(self, action: NDArray[np.float32]) -> TimeStep:
        """Act once in every environment.

        Args:
            action: (n, A), as `EnvSpec` tells.

        Returns:
            All n rows. One with `is_first` is of an environment made anew (see the class).

        Raises:
            AssertionError: if a row is an episode's last: no action follows it.
            EnvError: if an environment fails, more than `max_restarts` times; nothing can follow.
        """
        assert action.shape == (self.num_envs, self.spec.action_size), action.shape
        assert self._started.all(), "reset before the first step"
        over = np.flatnonzero(self._rows.terminated | self._rows.truncated)
        assert over.size == 0, f"the episodes of environments {over} are over: reset them first"
        for i, seat in enumerate(self._seats):
            self._steps[i] += 1
            seat.send("step", action[i])
        for i, seat in enumerate(self._seats):
            try:
                self._set_row(i, seat.receive(), is_first=False)
            except SimulatorError as error:
                self._make_anew(i, error)
                self._begin(i)
        return self._copy_rows()

    def random_action(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return (n, A) actions, uniform over the action space."""
        return self._actions.sample(rng, self.num_envs)

    def render(self) -> NDArray[Any] | None:
        """Return an (H, W, 3) uint8 picture of environment 0; None unless asked for when made."""
        self._seats[0].send("render")
        try:
            picture: NDArray[Any] | None = self._seats[0].receive()
        except SimulatorError as error:
            raise EnvError(0, self._steps[0], str(error)) from error
        return picture

    def close(self) -> None:
        """Free what the environments hold, and end their processes."""
        for seat in self._seats:
            _close(seat)
        self._seats.clear()

    def snapshot(self) -> dict[str, Any] | None:
        """Return all that moves, as plain types; None if an environment has no verified snapshot, or
        its process is gone (which the next step will notice).

        A vector restored from it gives the very rows that this one would have given.
        """
        assert self._started.all(), "reset before the first snapshot"
        try:
            environments = [_ask(seat, "capture") for seat in self._seats]
        except SimulatorError as error:
            log.debug("no snapshot: %s", error)
            return None
        if any(state is None for state in environments):
            return None
        rows = {key: to_plain(array) for key, array in self._arrays().items()}
        return {"environments": environments, "steps": list(self._steps), "rows": rows}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of a vector made with the same arguments.

        Raises:
            ConfigError: if it is of another number or kind of environments.
        """
        states = snapshot["environments"]
        if len(states) != self.num_envs:
            raise ConfigError(
                f"the checkpoint has {len(states)} environments, env.num_envs={self.num_envs}; "
                "they must agree to resume"
            )
        for seat, state in zip(self._seats, states, strict=True):
            _ask(seat, "restore", state)
        for key, array in self._arrays().items():
            array[...] = from_plain(snapshot["rows"][key])
        self._steps = list(snapshot["steps"])
        self._pending_seeds = [None] * self.num_envs
        self._started[:] = True

    def seed_anew(self, *life: int) -> None:
        """Have the next reset of each environment take a new seed, drawn from the vector's and `life`.

        For what goes on without a snapshot: from the first seeds, it would live the same episodes again.
        """
        self._children = np.random.SeedSequence([self._seed, *life]).spawn(self.num_envs)
        self._pending_seeds = [_seed(child) for child in self._children]

    def _fill_seats(self) -> None:
        for make in self._makers:
            self._seats.append(self._seat(make))
        for i, seat in enumerate(self._seats):
            try:
                seat.settle()
            except SimulatorError as error:
                raise ConfigError(f"environment {i} cannot be started: {error}") from error

    def _seat(self, make: Make) -> Seat:
        if self._options.processes:
            return ProcessSeat(make, self._options.frames, self._options.timeout)
        return LocalSeat(make, self._options.frames)

    def _begin(self, index: int) -> None:
        """Take the first row of an episode whose reset was asked for, however many attempts it needs."""
        while True:
            try:
                row = self._seats[index].receive()
            except SimulatorError as error:
                self._make_anew(index, error)
                continue
            self._pending_seeds[index] = None
            self._started[index] = True
            return self._set_row(index, row, is_first=True)

    def _make_anew(self, index: int, error: ConfigError | SimulatorError) -> None:
        """Replace a failed environment, and ask the new one for its first row.

        Raises:
            EnvError: if there were `max_restarts` before.
        """
        limit = self._options.max_restarts
        while True:
            failure = EnvError(index, self._steps[index], str(error))
            if isinstance(error, SimulatorError) and error.trace:
                traces.debug("environment %d\n%s", index, error.trace)
            if self._restarts >= limit:
                if limit == 0:
                    raise failure from error
                told = f"{error}; it is failure {limit + 1}, env.max_restarts={limit}"
                raise EnvError(index, self._steps[index], told) from error
            self._restarts += 1
            log.warning("%s; made anew (%d of %d times)", failure, self._restarts, limit)
            _close(self._seats[index])
            try:
                seat = self._seat(self._makers[index])
                self._seats[index] = seat
                seat.settle()
            except (ConfigError, SimulatorError) as again:
                error = again
                continue
            # Not the first seed again: the episode that failed would be the next one.
            self._pending_seeds[index] = _seed(self._children[index].spawn(1)[0])
            return seat.send("reset", self._pending_seeds[index])

    def _set_row(self, index: int, row: Row, *, is_first: bool) -> None:
        for key, shown in row.observations.items():
            self._rows.observations[key][index] = shown
        self._rows.reward[index] = row.reward
        self._rows.terminated[index] = row.terminated
        self._rows.truncated[index] = row.truncated
        self._rows.is_first[index] = is_first

    def _blank_rows(self) -> TimeStep:
        n = self.num_envs
        observations = {
            name: np.zeros((n, *part.shape), part.dtype) for name, part in self._keys.items()
        }
        flags = (np.zeros(n, np.bool_) for _ in range(3))
        return TimeStep(observations, np.zeros(n, np.float32), *flags)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        rows = self._rows
        names = ("reward", "is_first", "terminated", "truncated")
        observations = {f"observations/{key}": array for key, array in rows.observations.items()}
        return observations | {name: getattr(rows, name) for name in names}

    def _copy_rows(self) -> TimeStep:
        rows = self._rows
        return TimeStep(
            observations={key: array.copy() for key, array in rows.observations.items()},
            reward=rows.reward.copy(),
            is_first=rows.is_first.copy(),
            terminated=rows.terminated.copy(),
            truncated=rows.truncated.copy(),
        )


def spec_of(keys: Mapping[str, Observation], actions: Actions, action_repeat: int) -> EnvSpec:
    """What an environment shows and takes, of how it is translated."""
    return EnvSpec(
        observations={name: part.shape for name, part in keys.items()},
        action_size=actions.size,
        discrete=actions.discrete,
        action_repeat=action_repeat,
        groups=actions.groups,
        texts=tuple(name for name, part in keys.items() if part.kind == "text"),
    )


def _seed(sequence: np.random.SeedSequence) -> int:
    # 31 bits: some simulators keep the seed in a signed int.
    return int(sequence.generate_state(1)[0]) >> 1


def _ask(seat: Seat, method: str, *args: Any) -> Any:
    seat.send(method, *args)
    return seat.receive()


def _close(seat: Seat) -> None:
    try:
        seat.close()
    except Exception as error:  # noqa: BLE001 (a broken environment may not even close)
        log.debug("closing an environment: %s", error)
