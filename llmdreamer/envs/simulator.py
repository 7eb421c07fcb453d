"""One environment with translated spaces, run in this process or in a worker process."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs import snapshot as snapshots
from llmdreamer.envs.actions import ActionEncoding, action_encoding
from llmdreamer.envs.observations import ObservationEncoding, observation_encodings
from llmdreamer.utils.errors import STOP_REQUESTS, ConfigError

log = logging.getLogger(__name__)

EXIT_GRACE_SECONDS = 2.0
"""Time for a worker process to exit by itself before it is killed."""


class SimulatorError(RuntimeError):
    """An environment raised, returned an invalid value, or its process is gone. The message is one line.

    `trace` is the traceback of the environment's exception, or empty.
    """

    def __init__(self, cause: str, trace: str = "") -> None:
        super().__init__(cause)
        self.trace = trace


class EnvTimeStep(NamedTuple):
    """Observations, reward and end flags of one environment after a reset or a step."""

    observations: dict[str, NDArray[Any]]
    reward: float
    terminated: bool
    truncated: bool


class ObservationOptions(NamedTuple):
    """Options for translating observations: image size in pixels, text length in bytes, vector scales."""

    image_size: int = 64
    max_text_bytes: int = 128
    vector_scale: Mapping[str, Sequence[float]] | None = None


class Simulator:
    """An environment that takes action vectors of A numbers and returns arrays.

    Raises (every method):
        SimulatorError: if the environment raises, or returns a value outside its spaces.
    """

    def __init__(self, env: gym.Env[Any, Any], options: ObservationOptions) -> None:
        self._env = env
        self.observations: dict[str, ObservationEncoding] = observation_encodings(
            env.observation_space, *options
        )
        self.actions: ActionEncoding = action_encoding(env.action_space)

    def reset(self, seed: int | None) -> EnvTimeStep:
        observation, _ = self._call(lambda: self._env.reset(seed=seed))
        return self._time_step(observation, 0.0, False, False)

    def step(self, action: NDArray[np.float32]) -> EnvTimeStep:
        native_action = self.actions.decode(action)
        observation, reward, terminated, truncated, _ = self._call(
            lambda: self._env.step(native_action)
        )
        return self._time_step(observation, float(reward), bool(terminated), bool(truncated))

    def render(self) -> NDArray[Any] | None:
        """Return an image; None if the environment was made without rendering."""
        if self._env.render_mode is None:
            return None
        return np.asarray(self._call(self._env.render))

    def capture(self) -> dict[str, Any] | None:
        return snapshots.capture(self._env)

    def restore(self, state: dict[str, Any]) -> None:
        snapshots.restore(self._env, state)

    def close(self) -> None:
        self._env.close()

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except STOP_REQUESTS:
            raise
        except BaseException as error:  # third-party code may raise anything, also SystemExit
            raise SimulatorError(
                _describe(error), "".join(traceback.format_exception(error))
            ) from error

    def _time_step(
        self, observation: Any, reward: float, terminated: bool, truncated: bool
    ) -> EnvTimeStep:
        keys = list(self.observations)
        values = observation if isinstance(observation, dict) else {keys[0]: observation}
        arrays = {}
        for key, encoding in self.observations.items():
            try:
                arrays[key] = encoding.encode(values[key])
            except (KeyError, TypeError, ValueError) as error:
                raise SimulatorError(f"key '{key}': {error}") from error
        with np.errstate(over="ignore"):  # rewards are stored as float32, where it may be infinite
            stored = np.float32(reward)
        if not np.isfinite(stored):
            raise SimulatorError(f"reward is {reward}, not finite")
        return EnvTimeStep(arrays, reward, terminated, truncated)


EnvFactory = Callable[[], gym.Env[Any, Any]]


class EnvWorker(Protocol):
    """Runs one `Simulator`. Calls are sent and received separately, so that several run at once."""

    observations: dict[str, ObservationEncoding]
    actions: ActionEncoding

    def wait_ready(self) -> None:
        """Wait until the environment is made. Raises ConfigError, SimulatorError."""
        ...

    def send(self, method: str, *args: Any) -> None:
        """Start a call of a method of `Simulator`."""
        ...

    def receive(self) -> Any:
        """Return the result of the call. Raises SimulatorError, ConfigError."""
        ...

    def close(self) -> None: ...


class LocalEnvWorker:
    """An environment in this process."""

    def __init__(self, make: EnvFactory, options: ObservationOptions) -> None:
        env = make()
        try:
            self._simulator = Simulator(env, options)
        except ConfigError:
            env.close()
            raise
        self.observations, self.actions = self._simulator.observations, self._simulator.actions
        self._pending_call: tuple[str, tuple[Any, ...]] | None = None

    def wait_ready(self) -> None:
        """Do nothing: the constructor made the environment."""

    def send(self, method: str, *args: Any) -> None:
        self._pending_call = (method, args)

    def receive(self) -> Any:
        assert self._pending_call is not None, "receive() without send()"
        (method, args), self._pending_call = self._pending_call, None
        return getattr(self._simulator, method)(*args)

    def close(self) -> None:
        self._simulator.close()


class ProcessEnvWorker:
    """An environment in a separate process, which may die or hang without harm to this one.

    The process is spawned, not forked: a fork copies torch's locks in whatever state they are.
    """

    def __init__(
        self, make: EnvFactory, options: ObservationOptions, timeout: float | None = None
    ) -> None:
        self._timeout = timeout  # seconds for a result; None: unlimited
        context = multiprocessing.get_context("spawn")
        self._pipe, worker_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_end, make, options), daemon=True)
        self.process.start()
        worker_end.close()  # so that the pipe closes when the process dies

    def wait_ready(self) -> None:
        self.observations, self.actions = self._receive(
            None
        )  # no limit: it may download or compile

    def send(self, method: str, *args: Any) -> None:
        try:
            self._pipe.send((method, args))
        except OSError:
            log.debug("the environment's process is gone; receive() raises the error")

    def receive(self) -> Any:
        return self._receive(self._timeout)

    def _receive(self, timeout: float | None) -> Any:
        try:
            if not self._pipe.poll(timeout):
                self.process.kill()
                raise SimulatorError(f"no answer within {timeout} s; its process was killed")
            error_type, payload = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(EXIT_GRACE_SECONDS)
            raise SimulatorError(
                f"its process died ({_describe_exit(self.process.exitcode)})"
            ) from error
        if error_type is not None:
            raise error_type(*payload)
        return payload

    def close(self) -> None:
        self._pipe.close()  # ends the loop of the process
        self.process.join(EXIT_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(pipe: Connection, make: EnvFactory, options: ObservationOptions) -> None:
    """Run an environment's process: answer calls until the pipe closes."""
    # Ctrl-C reaches every process of a terminal; the run decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulator: Simulator | None = None
    try:
        simulator = Simulator(make(), options)
        pipe.send((None, (simulator.observations, simulator.actions)))
        while True:
            method, args = pipe.recv()
            pipe.send(_call_method(simulator, method, args))
    except ConfigError as error:
        pipe.send((ConfigError, (str(error),)))
    except (EOFError, OSError):
        log.debug("the run closed the pipe")
    finally:
        if simulator is not None:
            simulator.close()


def _call_method(simulator: Simulator, method: str, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return (None, result), or an error's class and its arguments."""
    try:
        return None, getattr(simulator, method)(*args)
    except ConfigError as error:
        return ConfigError, (str(error),)
    except SimulatorError as error:
        return SimulatorError, (str(error), error.trace)


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "its pipe is closed"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
