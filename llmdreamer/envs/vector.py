"""Several environments stepped side by side, without automatic resets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs.plain import from_plain, to_plain
from llmdreamer.envs.simulator import (
    EnvDescription,
    EnvFactory,
    EnvTimeStep,
    EnvWorker,
    LocalEnvWorker,
    ObservationOptions,
    ProcessEnvWorker,
    SimulatorError,
)
from llmdreamer.types import EnvSpec, TimeStep
from llmdreamer.utils.errors import STOP_REQUESTS, ConfigError

log = logging.getLogger(__name__)
traceback_log = logging.getLogger("llmdreamer.traces")
"""Written to `run.log` only, see conf/hydra/job_logging."""


class EnvError(RuntimeError):
    """The environments failed more than `max_restarts` times in all. Holds the last failure."""

    exit_code = 1

    def __init__(self, index: int, step: int, cause: str) -> None:
        super().__init__(f"environment {index}, policy step {step}: {cause}")
        self.index = index
        self.step = step
        self.cause = cause


@dataclass(frozen=True)
class VectorOptions:
    """Options of `VectorEnv`, described in `conf/config.yaml` under env."""

    observations: ObservationOptions = field(default_factory=ObservationOptions)
    action_repeat: int = 1  # reported in `spec` only; the environments repeat by themselves
    processes: bool = False
    max_restarts: int = 0
    timeout: float | None = None


class VectorEnv:
    """n environments of one kind, in this process or each in a separate process.

    There is no automatic reset: the caller resets an environment after its episode's last time step,
    so every time step is returned once and in order.

    An environment is restarted when it raises, returns a number that is not finite, or when its process
    dies or does not answer; at most `max_restarts` times in all. `step` then returns the first time step
    of its next episode; the failed episode is truncated at its previous time step.

    Args:
        factories: make the environments; at least one. For worker processes they must be picklable.
        seed: seed of the vector. Environment i has a child seed for its first reset, which does not
            depend on n; later resets continue its random generator.

    Raises:
        ConfigError: if a space is not supported, or an environment cannot be made.
    """

    def __init__(
        self, factories: Sequence[EnvFactory], seed: int, options: VectorOptions | None = None
    ):
        assert factories, "at least one environment"
        self._factories = list(factories)
        self._options = options or VectorOptions()
        self._workers: list[EnvWorker] = []
        try:
            self._start_workers()
        except BaseException:
            self.close()
            raise
        self._description = self._workers[0].description
        self.spec = self._spec_of(self._workers[0])
        self.num_envs = len(factories)
        self._seed = seed
        self._pending_seeds: list[int | None] = []
        self.reseed()
        self._policy_steps = [0] * self.num_envs
        self._restarts = 0
        self._started = np.zeros(self.num_envs, np.bool_)
        self._time_step = self._zero_time_step()

    def reset(self, mask: NDArray[np.bool_] | None = None) -> TimeStep:
        """Start an episode where `mask` (n,) is true; in all environments if it is None.

        Returns:
            The time step of all n environments. Outside the mask it is unchanged, `is_first` included.

        Raises:
            EnvError: if environments failed more than `max_restarts` times.
        """
        mask = np.ones(self.num_envs, np.bool_) if mask is None else mask
        assert mask.shape == (self.num_envs,) and mask.dtype == np.bool_, mask
        assert (self._started | mask).all(), "the first reset must include all environments"
        indices = np.flatnonzero(mask).tolist()
        for i in indices:
            self._workers[i].send("reset", self._pending_seeds[i])
        for i in indices:
            self._receive_first_step(i)
        return self._copy_time_step()

    def step(self, action: NDArray[np.float32]) -> TimeStep:
        """Step every environment once.

        Args:
            action: (n, A), see `EnvSpec`.

        Returns:
            The time step of all n environments. `is_first` marks a restarted environment (see the class).

        Raises:
            AssertionError: if an environment's episode is over; it must be reset first.
            EnvError: if environments failed more than `max_restarts` times; the vector is then unusable.
        """
        assert action.shape == (self.num_envs, self.spec.action_size), action.shape
        assert self._started.all(), "reset before the first step"
        over = np.flatnonzero(self._time_step.terminated | self._time_step.truncated)
        assert over.size == 0, f"the episodes of environments {over} are over: reset them first"
        for i, worker in enumerate(self._workers):
            self._policy_steps[i] += 1
            worker.send("step", action[i])
        for i, worker in enumerate(self._workers):
            try:
                self._store(i, worker.receive(), is_first=False)
            except SimulatorError as error:
                self._restart(i, error)
                self._receive_first_step(i)
        return self._copy_time_step()

    def random_action(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return (n, A) actions, uniform over the action space."""
        return self._description.actions.sample(rng, self.num_envs)

    def check_interface(self) -> None:
        """Reset and step environment 0 once, to refuse a wrong interface before a run leaves any file.

        The first reset that follows has the same seed. It reports every other failure.

        Raises:
            ConfigError: if `reset` or `step` has another interface than Gymnasium's.
        """
        action = self.random_action(np.random.default_rng(self._seed))[0]
        try:
            _call(self._workers[0], "check_interface", self._pending_seeds[0], action)
        except SimulatorError as error:
            log.debug("the first reset and step failed: %s", error)

    def check_spec(self, expected: EnvSpec) -> None:
        """Check that the environments have the spaces that an agent was built for.

        Raises:
            EnvError: if a space differs, because the environment does not always make the same one.
        """
        if self.spec != expected:
            raise EnvError(0, 0, _describe_change(self.spec, expected))

    @property
    def renders_images(self) -> bool:
        """True if the environment declares the render mode `rgb_array`."""
        return "rgb_array" in self._description.render_modes

    def render(self) -> NDArray[np.uint8]:
        """Return an (H, W, 3) image of environment 0, which must have been made with rendering.

        Raises:
            EnvError: if `render` fails, or returns something else than an image.
        """
        try:
            image: NDArray[np.uint8] = _call(self._workers[0], "render")
        except SimulatorError as error:
            raise EnvError(0, self._policy_steps[0], str(error)) from error
        return image

    def close(self) -> None:
        """Close the environments and end their processes."""
        for worker in self._workers:
            _close(worker)
        self._workers.clear()

    def snapshot(self) -> dict[str, Any] | None:
        """Return the complete state as plain types.

        A vector restored from it returns the same time steps that this one would have returned.

        Returns:
            None if an environment has no verified snapshot, or has not been reset yet, or its process is
            gone. The next step restarts it.
        """
        if not self._started.all():
            return None
        try:
            environments = [_call(worker, "capture") for worker in self._workers]
        except SimulatorError as error:
            log.debug("no snapshot: %s", error)
            return None
        if any(state is None for state in environments):
            return None
        time_step = {key: to_plain(array) for key, array in self._time_step_arrays().items()}
        return {
            "environments": environments,
            "policy_steps": list(self._policy_steps),
            "time_step": time_step,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Restore a snapshot of a vector made with the same arguments.

        Raises:
            ConfigError: if the snapshot has another number or kind of environments.
        """
        states = snapshot["environments"]
        if len(states) != self.num_envs:
            raise ConfigError(
                f"the checkpoint has {len(states)} environments, env.num_envs={self.num_envs}; "
                "they must agree to resume"
            )
        for worker, state in zip(self._workers, states, strict=True):
            try:
                _call(worker, "restore", state)
            except SimulatorError as error:
                raise ConfigError(
                    f"the environment's snapshot cannot be restored: {error}"
                ) from error
        for key, array in self._time_step_arrays().items():
            array[...] = from_plain(snapshot["time_step"][key])
        self._policy_steps = list(snapshot["policy_steps"])
        self._pending_seeds = [None] * self.num_envs
        self._started[:] = True

    def reseed(self, *key: int) -> None:
        """Seed the next reset of each environment from the vector's seed and `key`.

        A run that resumes without a snapshot needs this: the first seeds would repeat its first episodes.
        """
        self._seed_sequences = np.random.SeedSequence([self._seed, *key]).spawn(self.num_envs)
        self._pending_seeds = [_draw_seed(sequence) for sequence in self._seed_sequences]

    def _start_workers(self) -> None:
        for i, make in enumerate(self._factories):
            with _refusing(i):
                self._workers.append(self._make_worker(make))
        for i, worker in enumerate(self._workers):
            with _refusing(i):
                worker.wait_ready()
                spec, expected = self._spec_of(worker), self._spec_of(self._workers[0])
                if spec != expected:
                    raise SimulatorError(_describe_change(spec, expected))

    def _spec_of(self, worker: EnvWorker) -> EnvSpec:
        return make_env_spec(worker.description, self._options.action_repeat)

    def _make_worker(self, make: EnvFactory) -> EnvWorker:
        if self._options.processes:
            return ProcessEnvWorker(make, self._options.observations, self._options.timeout)
        return LocalEnvWorker(make, self._options.observations)

    def _receive_first_step(self, index: int) -> None:
        """Receive the first time step after a reset was sent; restart the environment until it succeeds."""
        while True:
            try:
                time_step = self._workers[index].receive()
            except SimulatorError as error:
                self._restart(index, error)
                continue
            self._pending_seeds[index] = None
            self._started[index] = True
            return self._store(index, time_step, is_first=True)

    def _restart(self, index: int, error: ConfigError | SimulatorError) -> None:
        """Replace a failed environment and send its first reset.

        Raises:
            EnvError: if there were `max_restarts` restarts already.
        """
        limit = self._options.max_restarts
        while True:
            failure = EnvError(index, self._policy_steps[index], str(error))
            if isinstance(error, SimulatorError) and error.trace:
                traceback_log.debug("environment %d\n%s", index, error.trace)
            if self._restarts >= limit:
                if limit == 0:
                    raise failure from error
                cause = f"{error}; failure {limit + 1} exceeds env.max_restarts={limit}"
                raise EnvError(index, self._policy_steps[index], cause) from error
            self._restarts += 1
            log.warning("%s; restarted (%d of %d times)", failure, self._restarts, limit)
            _close(self._workers[index])
            try:
                worker = self._make_worker(self._factories[index])
                self._workers[index] = worker
                worker.wait_ready()
                if (spec := self._spec_of(worker)) != self.spec:
                    raise SimulatorError(_describe_change(spec, self.spec))
            except (ConfigError, SimulatorError) as next_error:
                error = next_error
                continue
            # A new seed: with the first one, the failed episode would repeat.
            self._pending_seeds[index] = _draw_seed(self._seed_sequences[index].spawn(1)[0])
            return worker.send("reset", self._pending_seeds[index])

    def _store(self, index: int, time_step: EnvTimeStep, *, is_first: bool) -> None:
        for key, array in time_step.observations.items():
            self._time_step.observations[key][index] = array
        self._time_step.reward[index] = time_step.reward
        self._time_step.terminated[index] = time_step.terminated
        self._time_step.truncated[index] = time_step.truncated
        self._time_step.is_first[index] = is_first

    def _zero_time_step(self) -> TimeStep:
        n = self.num_envs
        observations = {
            key: np.zeros((n, *encoding.shape), encoding.dtype)
            for key, encoding in self._description.observations.items()
        }
        flags = (np.zeros(n, np.bool_) for _ in range(3))
        return TimeStep(observations, np.zeros(n, np.float32), *flags)

    def _time_step_arrays(self) -> dict[str, NDArray[Any]]:
        time_step = self._time_step
        names = ("reward", "is_first", "terminated", "truncated")
        observations = {
            f"observations/{key}": array for key, array in time_step.observations.items()
        }
        return observations | {name: getattr(time_step, name) for name in names}

    def _copy_time_step(self) -> TimeStep:
        time_step = self._time_step
        return TimeStep(
            observations={key: array.copy() for key, array in time_step.observations.items()},
            reward=time_step.reward.copy(),
            is_first=time_step.is_first.copy(),
            terminated=time_step.terminated.copy(),
            truncated=time_step.truncated.copy(),
        )


def make_env_spec(description: EnvDescription, action_repeat: int) -> EnvSpec:
    """Return the specification of an environment from the encodings of its spaces."""
    observations, actions = description.observations, description.actions
    return EnvSpec(
        observations={key: encoding.shape for key, encoding in observations.items()},
        action_size=actions.size,
        discrete=actions.discrete,
        action_repeat=action_repeat,
        groups=actions.groups,
        texts=tuple(key for key, encoding in observations.items() if encoding.kind == "text"),
    )


@contextmanager
def _refusing(index: int) -> Iterator[None]:
    """Raise ConfigError for a failure of an environment that is being made."""
    try:
        yield
    except SimulatorError as error:
        raise ConfigError(f"environment {index} cannot be started: {error}") from error


def _describe_change(spec: EnvSpec, expected: EnvSpec) -> str:
    def describe(spec: EnvSpec) -> str:
        kind = "choices" if spec.discrete else "numbers"
        sizes = list(spec.choices) if spec.discrete else spec.action_size
        return f"observations {spec.observations}, actions of {sizes} {kind}"

    return f"the new environment has other spaces: {describe(spec)}, not {describe(expected)}"


def _draw_seed(sequence: np.random.SeedSequence) -> int:
    # 31 bits: some simulators store the seed in a signed int.
    return int(sequence.generate_state(1)[0]) >> 1


def _call(worker: EnvWorker, method: str, *args: Any) -> Any:
    worker.send(method, *args)
    return worker.receive()


def _close(worker: EnvWorker) -> None:
    try:
        worker.close()
    except STOP_REQUESTS:
        raise
    except BaseException as error:  # noqa: BLE001 (a broken environment may raise here too)
        log.debug("closing an environment failed: %s", error)
