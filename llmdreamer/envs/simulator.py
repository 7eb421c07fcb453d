"""One environment with translated spaces, run in this process or in a worker process."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs import snapshot as snapshots
from llmdreamer.envs.actions import ActionEncoding, action_encoding
from llmdreamer.envs.observations import Observations, observation_encodings
from llmdreamer.envs.returned import (
    InterfaceError,
    InvalidValueError,
    read_image,
    read_reset,
    read_step,
)
from llmdreamer.utils.errors import STOP_REQUESTS, ConfigError, describe_error

T = TypeVar("T")
log = logging.getLogger(__name__)

EXIT_GRACE_SECONDS = 2.0
"""Time for a worker process to exit by itself before it is killed."""


class SimulatorError(Exception):
    """An environment raised, returned an invalid value, or its process is gone. The message is one line.

    It is no RuntimeError: `contextmanager` replaces a RuntimeError with the StopIteration that caused it.

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


class EnvDescription(NamedTuple):
    """The encodings of an environment's spaces, and the forms in which it can be rendered."""

    observations: Observations
    actions: ActionEncoding
    render_modes: tuple[str, ...]


class Simulator:
    """An environment that takes action vectors of A numbers and returns arrays.

    The environment is third-party code. It is called, and what it returns is converted, only inside
    `_guard`, so whatever it does becomes one of the two errors below.

    Raises:
        ConfigError: by the constructor, if a space is missing or not supported.
        SimulatorError: by every method, if the environment raises, or returns a value outside its spaces.
    """

    def __init__(self, env: gym.Env[Any, Any], options: ObservationOptions) -> None:
        self._env = env
        self.description = EnvDescription(
            _translate("observation_space", env, lambda s: observation_encodings(s, *options)),
            _translate("action_space", env, action_encoding),
            _render_modes(env),
        )

    def reset(self, seed: int | None) -> EnvTimeStep:
        with _guard():
            observation = read_reset(self._env.reset(seed=seed))
            return EnvTimeStep(self.description.observations.encode(observation), 0.0, False, False)

    def step(self, action: NDArray[np.float32]) -> EnvTimeStep:
        native_action = self.description.actions.decode(action)
        with _guard():
            observation, reward, terminated, truncated = read_step(self._env.step(native_action))
            arrays = self.description.observations.encode(observation)
            with np.errstate(over="ignore"):  # stored as float32, where it may be infinite
                stored = np.float32(reward)
            if not np.isfinite(stored):
                raise InvalidValueError(f"reward is {reward}, not finite")
            return EnvTimeStep(arrays, reward, terminated, truncated)

    def check_interface(self, seed: int, action: NDArray[np.float32]) -> None:
        """Reset and step once.

        Raises:
            ConfigError: if a method has another interface than Gymnasium's.
            SimulatorError: if it fails in another way.
        """
        try:
            self.reset(seed)
            self.step(action)
        except SimulatorError as error:
            reason = self._wrong_interface(error.__cause__, action)
            if reason is not None:
                name = type(self._env.unwrapped).__name__
                raise ConfigError(f"{name} lacks the interface of Gymnasium: {reason}") from error
            raise

    def render(self) -> NDArray[np.uint8]:
        """Return an image (H, W, 3)."""
        with _guard():
            return read_image(self._env.render())

    def capture(self) -> dict[str, Any] | None:
        with _guard():
            return snapshots.capture(self._env)

    def restore(self, state: dict[str, Any]) -> None:
        with _guard():
            snapshots.restore(self._env, state)

    def close(self) -> None:
        with _guard():
            self._env.close()

    def _wrong_interface(
        self, error: BaseException | None, action: NDArray[np.float32]
    ) -> str | None:
        """Return how the interface of the environment is wrong; None if the error has another reason."""
        if isinstance(error, InterfaceError):
            return str(error)
        if not isinstance(error, TypeError | ValueError):
            return None
        base = self._env.unwrapped
        if missing := _missing_parameters(base.reset):
            return (
                f"reset does not take {' and '.join(missing)} (the interface before Gymnasium);"
                " define reset(self, *, seed=None, options=None)"
            )
        # A wrapper such as TimeLimit unpacks the result before it arrives here.
        try:
            with _guard():
                read_reset(base.reset(seed=None, options=None))
                read_step(base.step(self.description.actions.decode(action)))
        except SimulatorError as inner:
            if isinstance(inner.__cause__, InterfaceError):
                return str(inner)
        return None


@contextmanager
def _guard() -> Iterator[None]:
    """Turn whatever an environment raises into a SimulatorError, also SystemExit.

    Raises:
        SimulatorError: with the cause in one line.
        ConfigError: unchanged: it is the project's own.
    """
    try:
        yield
    except (ConfigError, *STOP_REQUESTS):
        raise
    except (
        InvalidValueError
    ) as error:  # the environment did not raise: there is no traceback of its
        raise SimulatorError(str(error)) from error
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        raise SimulatorError(describe_error(error), trace) from error


def _translate(name: str, env: gym.Env[Any, Any], translate: Callable[[Any], T]) -> T:
    """Return the encoding of a space of the environment. Raises ConfigError."""
    try:
        with _guard():
            return translate(getattr(env, name))
    except SimulatorError as error:
        raise ConfigError(f"the environment's {name} cannot be read: {error}") from error


def _render_modes(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    try:
        with _guard():
            return tuple(str(mode) for mode in env.metadata["render_modes"])
    except SimulatorError:  # metadata is optional
        return ()


def _missing_parameters(reset: Callable[..., Any]) -> list[str]:
    """Return which of `seed` and `options` a method `reset` does not take."""
    try:
        parameters = inspect.signature(reset).parameters
    except (TypeError, ValueError):  # compiled code may have no signature
        return []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in ("seed", "options") if name not in parameters]


EnvFactory = Callable[[], gym.Env[Any, Any]]


class EnvWorker(Protocol):
    """Runs one `Simulator`. Calls are sent and received separately, so that several run at once."""

    description: EnvDescription

    def wait_ready(self) -> None:
        """Wait until the environment is made and described. Raises ConfigError, SimulatorError."""
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
        self._simulator = _make_simulator(make, options)
        self.description = self._simulator.description
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
        self.description = self._receive(None)  # no limit: it may download or compile

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


def _make_simulator(make: EnvFactory, options: ObservationOptions) -> Simulator:
    """Make an environment and read its spaces. Raises ConfigError, SimulatorError."""
    with _guard():
        env = make()
        try:
            return Simulator(env, options)
        except ConfigError:
            with suppress(SimulatorError), _guard():
                env.close()
            raise


def _serve(pipe: Connection, make: EnvFactory, options: ObservationOptions) -> None:
    """Run an environment's process: answer calls until the pipe closes."""
    # Ctrl-C reaches every process of a terminal; the run decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulator: Simulator | None = None
    try:
        simulator = _make_simulator(make, options)
        pipe.send((None, simulator.description))
        while True:
            method, args = pipe.recv()
            pipe.send(_call_method(simulator, method, args))
    except ConfigError as error:
        pipe.send((ConfigError, (str(error),)))
    except SimulatorError as error:
        pipe.send((SimulatorError, (str(error), error.trace)))
    except (EOFError, OSError):
        log.debug("the run closed the pipe")
    finally:
        if simulator is not None:
            with suppress(SimulatorError):
                simulator.close()


def _call_method(simulator: Simulator, method: str, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return (None, result), or an error's class and its arguments."""
    try:
        return None, getattr(simulator, method)(*args)
    except ConfigError as error:
        return ConfigError, (str(error),)
    except SimulatorError as error:
        return SimulatorError, (str(error), error.trace)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "its pipe is closed"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
