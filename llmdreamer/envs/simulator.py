"""One environment with its spaces translated; and where it runs: in this process, or one of its own."""

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
from llmdreamer.envs.actions import Actions, action_kind
from llmdreamer.envs.observations import Observation, observation_keys
from llmdreamer.utils.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds a process has to end by itself."""


class SimulatorError(RuntimeError):
    """An environment raised, showed what it may not, or its process is gone: the cause, one line.

    `trace` is the traceback of what it raised, or empty.
    """

    def __init__(self, cause: str, trace: str = "") -> None:
        super().__init__(cause)
        self.trace = trace


class Row(NamedTuple):
    """What one environment shows on arriving."""

    observations: dict[str, NDArray[Any]]
    reward: float
    terminated: bool
    truncated: bool


class Frames(NamedTuple):
    """How an environment is translated: pixels of an image's side, bytes of a text, factors of vectors."""

    image_size: int = 64
    max_text_bytes: int = 128
    vector_scale: Mapping[str, Sequence[float]] | None = None


class Simulator:
    """An environment that takes rows of A numbers and shows arrays.

    Raises (every method):
        SimulatorError: whatever the environment raises, and where it shows what it may not.
    """

    def __init__(self, env: gym.Env[Any, Any], frames: Frames) -> None:
        self._env = env
        self.keys: dict[str, Observation] = observation_keys(env.observation_space, *frames)
        self.actions: Actions = action_kind(env.action_space)

    def reset(self, seed: int | None) -> Row:
        observation, _ = self._call(lambda: self._env.reset(seed=seed))
        return self._row(observation, 0.0, False, False)

    def step(self, action: NDArray[np.float32]) -> Row:
        taken = self.actions.decode(action)
        observation, reward, terminated, truncated, _ = self._call(lambda: self._env.step(taken))
        return self._row(observation, float(reward), bool(terminated), bool(truncated))

    def render(self) -> NDArray[Any] | None:
        """Return a picture; None unless asked for when made."""
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
        except Exception as error:  # an environment is a stranger's code and may raise anything
            raise SimulatorError(
                _told(error), "".join(traceback.format_exception(error))
            ) from error

    def _row(self, observation: Any, reward: float, terminated: bool, truncated: bool) -> Row:
        names = list(self.keys)
        plain = observation if isinstance(observation, dict) else {names[0]: observation}
        shown = {}
        for name, part in self.keys.items():
            try:
                shown[name] = part.encode(plain[name])
            except (KeyError, TypeError, ValueError) as error:
                raise SimulatorError(f"key '{name}': {error}") from error
        with np.errstate(over="ignore"):  # one too large for float32, as it is stored, is infinite
            stored = np.float32(reward)
        if not np.isfinite(stored):
            raise SimulatorError(f"reward is {reward}")
        return Row(shown, reward, terminated, truncated)


Make = Callable[[], gym.Env[Any, Any]]


class Seat(Protocol):
    """Where an environment sits. A method's call and its result are apart, so that many run at once."""

    keys: dict[str, Observation]
    actions: Actions

    def settle(self) -> None:
        """Wait until the environment is there. Raises ConfigError, SimulatorError."""
        ...

    def send(self, method: str, *args: Any) -> None:
        """Ask for a method of `Simulator`."""
        ...

    def receive(self) -> Any:
        """Return what it gave. Raises SimulatorError, ConfigError."""
        ...

    def close(self) -> None: ...


class LocalSeat:
    """An environment in this process."""

    def __init__(self, make: Make, frames: Frames) -> None:
        env = make()
        try:
            self._simulator = Simulator(env, frames)
        except ConfigError:
            env.close()
            raise
        self.keys, self.actions = self._simulator.keys, self._simulator.actions
        self._asked: tuple[str, tuple[Any, ...]] | None = None

    def settle(self) -> None:
        """It is there since it was made."""

    def send(self, method: str, *args: Any) -> None:
        self._asked = (method, args)

    def receive(self) -> Any:
        assert self._asked is not None, "nothing was asked"
        (method, args), self._asked = self._asked, None
        return getattr(self._simulator, method)(*args)

    def close(self) -> None:
        self._simulator.close()


class ProcessSeat:
    """An environment in a process of its own, which may die or hang without taking this one along.

    Spawned, not forked: a fork would copy torch's threads in the middle of what they hold.
    """

    def __init__(self, make: Make, frames: Frames, timeout: float | None = None) -> None:
        self._timeout = timeout  # seconds for an answer
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, frames), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the pipe

    def settle(self) -> None:
        self.keys, self.actions = self._receive(None)  # a simulator may be fetched and compiled

    def send(self, method: str, *args: Any) -> None:
        try:
            self._pipe.send((method, args))
        except OSError:
            log.debug("the environment's process is gone; receive() tells it")

    def receive(self) -> Any:
        return self._receive(self._timeout)

    def _receive(self, timeout: float | None) -> Any:
        try:
            if not self._pipe.poll(timeout):
                self.process.kill()
                raise SimulatorError(f"no answer in {timeout} s; its process was killed")
            error, told = self._pipe.recv()
        except (EOFError, OSError) as gone:
            self.process.join(PATIENCE)
            raise SimulatorError(f"its process died ({_ending(self.process.exitcode)})") from gone
        if error is not None:
            raise error(*told)
        return told

    def close(self) -> None:
        self._pipe.close()  # which ends its loop
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _serve(pipe: Connection, make: Make, frames: Frames) -> None:
    """The life of an environment's process: answer until the pipe closes."""
    # Ctrl-C reaches every process of a terminal; the run itself decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulator: Simulator | None = None
    try:
        simulator = Simulator(make(), frames)
        pipe.send((None, (simulator.keys, simulator.actions)))
        while True:
            method, args = pipe.recv()
            pipe.send(_answer(simulator, method, args))
    except ConfigError as error:
        pipe.send((ConfigError, (str(error),)))
    except (EOFError, OSError):
        log.debug("the run closed the pipe")
    finally:
        if simulator is not None:
            simulator.close()


def _answer(simulator: Simulator, method: str, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """An error's kind or None, and what it is made of or the value."""
    try:
        return None, getattr(simulator, method)(*args)
    except ConfigError as error:
        return ConfigError, (str(error),)
    except SimulatorError as error:
        return SimulatorError, (str(error), error.trace)


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _ending(code: int | None) -> str:
    if code is None:
        return "its pipe is closed"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
