"""The replay buffer: one stream of time steps per environment on disk, sampled in sequences."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmdreamer.replay import layout
from llmdreamer.replay.stream import Stream
from llmdreamer.types import EnvSpec, SequenceBatch, TimeStep
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import fsync


class SequenceReplay:
    """Time steps in the order of collection, sampled in chunks of T steps behind one context step.

    Episodes may begin and end anywhere inside a chunk; `is_first` is stored with every step. Steps are
    never changed in place, so truncating the streams to a checkpoint's cursor restores the buffer exactly.

    Args:
        folder: used by this buffer alone; steps already there are kept (`clear` removes them).
        spec: observations and actions of the environments.
        num_envs: number of streams; each keeps its newest capacity // num_envs steps.
        capacity: steps kept for sampling, over all streams.
        sequence_length: T, the trained steps of a chunk.
        seed: seed of the sampler.
        online: serve each new chunk once before uniform ones, as DreamerV3 does.
        terminated_share: fraction of the drawn chunks, in [0, 1], that hold a terminated step. Such a step is
            drawn uniformly, then a chunk around it. The other chunks are uniform.
        slack: steps per stream kept on disk beyond its capacity, so that a checkpoint this many steps old
            still finds what it could sample; None: a quarter of the capacity, at least one file.

    Raises:
        ConfigError: if a stream cannot hold one chunk and its context, the folder has another layout, or
            the disk has no space to begin.
    """

    def __init__(  # noqa: PLR0913 (each is a setting of its own)
        self,
        folder: Path,
        spec: EnvSpec,
        num_envs: int,
        capacity: int,
        sequence_length: int,
        seed: int,
        *,
        online: bool = True,
        terminated_share: float = 0.0,
        slack: int | None = None,
    ) -> None:
        limit = capacity // num_envs
        if limit < sequence_length + 1:
            raise ConfigError(
                f"replay.capacity={capacity} over {num_envs} environments is less than one sequence"
                f" and its context step ({sequence_length + 1}) each; nothing would train"
            )
        self._dtype = layout.step_dtype(spec)
        self._folder, self._spec, self._num_envs = folder, spec, num_envs
        self._limit, self._length, self._online = limit, sequence_length, online
        segment = layout.segment_steps(self._dtype, limit)
        self._slack = max(limit // 4, segment) if slack is None else slack
        layout.claim_folder(folder, spec, num_envs, self._dtype)
        stream_bytes = (limit + self._slack + segment) * self._dtype.itemsize
        layout.check_room(
            folder, num_envs * stream_bytes, num_envs * segment * self._dtype.itemsize
        )
        self._streams = [
            Stream(folder / f"stream-{i:04d}", self._dtype, segment) for i in range(num_envs)
        ]
        self._start = [max(s.first, s.written - limit) for s in self._streams]
        self._next_online = [stream.written for stream in self._streams]
        self._terminated_share = terminated_share
        # Indices of terminated steps in each stream, ascending; none if the share is 0. They are part of
        # `state_dict`, so they are not read from disk.
        self._terminated: list[list[int]] = [[] for _ in self._streams]
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of steps that can be sampled, over all streams."""
        return sum(s.written - start for s, start in zip(self._streams, self._start, strict=True))

    @property
    def ready(self) -> bool:
        """True once there is a chunk to sample."""
        return bool(self._chunk_counts().any())

    def append(
        self, step: TimeStep, action: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Append one step of each environment where `mask` (n,) is true; None: of all of them.

        Args:
            step: observations, rewards and flags of n environments.
            action: (n, A), chosen after the observation; zeros on the last step of an episode.

        Raises:
            OSError: if the disk is full; then no stream has the step, and the call may be repeated.
        """
        indices = range(self._num_envs) if mask is None else np.flatnonzero(mask).tolist()
        records = self._pack(step, action)
        for i in indices:
            last = step.terminated[i] | step.truncated[i]
            assert not (last and records["action"][i].any()), f"an action on the last step of {i}"
            has_steps = self._streams[i].written > 0
            assert has_steps or step.is_first[i], f"stream {i} must begin with an episode"
            self._streams[i].write(records[i : i + 1])
        for i in indices:
            stream = self._streams[i]
            if self._terminated_share > 0 and step.terminated[i]:
                self._terminated[i].append(stream.written)
            stream.commit()
            self._start[i] = max(self._start[i], stream.written - self._limit)
            del self._terminated[i][: bisect_left(self._terminated[i], self._start[i])]
            stream.drop_before(stream.written - self._limit - self._slack)

    def sample(self, batch_size: int) -> SequenceBatch:
        """Return B chunks of T steps, each behind one context step, on the CPU.

        At the start of a stream the context step is zeros. It has no effect, because the first step of
        the chunk is `is_first`.
        """
        chunks = self._take_online(batch_size) if self._online else []
        chunks += self._draw(batch_size - len(chunks))
        records = np.zeros((batch_size, self._length + 1), self._dtype)
        for out, (i, start) in zip(records, chunks, strict=True):
            context = min(start, 1)
            self._streams[i].read(start - context, out[1 - context :])
        keys = {key: layout.observation_field(key) for key in self._spec.observations}
        return SequenceBatch(
            observations={key: _tensor(records[field]) for key, field in keys.items()},
            action=_tensor(records["action"]),
            reward=_tensor(records["reward"]),
            is_first=_tensor(records["is_first"]),
            terminated=_tensor(records["terminated"]),
        )

    def flush(self) -> None:
        """Return once all steps are on disk; call it before writing a checkpoint."""
        self.make_flush()()

    def make_flush(self) -> Callable[[], None]:
        """Return a call that flushes the present steps; other threads may go on appending."""
        syncs = [stream.make_sync() for stream in self._streams]

        def flush() -> None:
            for sync in syncs:
                sync()
            fsync(self._folder)

        return flush

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor of each stream, the sampler's generator and the online queue."""
        return {
            "written": [stream.written for stream in self._streams],
            "start": list(self._start),
            "online": list(self._next_online),
            "terminated": [list(indices) for indices in self._terminated],
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Truncate every stream to the cursor of the state.

        Raises:
            ConfigError: if steps that the state counts are missing on disk; then nothing is truncated.
        """
        if len(state["written"]) != self._num_envs:
            raise ConfigError(
                f"the checkpoint's replay has {len(state['written'])} streams, this run "
                f"env.num_envs={self._num_envs}; they must agree to resume"
            )
        needs = list(zip(self._streams, state["start"], state["written"], strict=True))
        for stream, start, written in needs:
            if not stream.first <= start <= written <= stream.written:
                raise ConfigError(
                    f"{stream.folder} holds steps {stream.first}..{stream.written}, the checkpoint "
                    f"needs {start}..{written}; resume from another checkpoint, or start a new run"
                )
        for stream, _, written in needs:
            stream.cut(written)
        self._start = [max(start, written - self._limit) for _, start, written in needs]
        self._next_online = list(state["online"])
        self._terminated = [list(indices) for indices in state["terminated"]]
        self._rng.bit_generator.state = state["rng"]

    def clear(self) -> None:
        """Remove every step."""
        for stream in self._streams:
            stream.clear()
        self._start = [0] * self._num_envs
        self._next_online = [0] * self._num_envs
        self._terminated = [[] for _ in self._streams]

    def close(self) -> None:
        """Close the open files."""
        for stream in self._streams:
            stream.close()

    def _pack(self, step: TimeStep, action: NDArray[np.float32]) -> NDArray[Any]:
        assert action.shape == (self._num_envs, self._spec.action_size), action.shape
        records = np.zeros(self._num_envs, self._dtype)
        for key in self._spec.observations:
            field, value = layout.observation_field(key), step.observations[key]
            assert records[field].shape == value.shape and records[field].dtype == value.dtype, (
                f"{key}: {value.dtype}{value.shape}, not {records[field].dtype}{records[field].shape}"
            )
            records[field] = value
        records["action"] = action
        for name in ("reward", "is_first", "terminated", "truncated"):
            records[name] = getattr(step, name)
        return records

    def _lowest(self, i: int) -> int:
        # Step 0 needs no context. Any other first step is the context of the next one.
        return self._start[i] + 1 if self._start[i] > 0 else 0

    def _chunk_counts(self) -> NDArray[np.int64]:
        last = [stream.written - self._length for stream in self._streams]
        counts = [last[i] - self._lowest(i) + 1 for i in range(self._num_envs)]
        return np.maximum(counts, 0)

    def _take_online(self, count: int) -> list[tuple[int, int]]:
        """Return up to `count` chunks (stream, first step) not served yet, oldest first."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            starts = [max(first, self._lowest(i)) for i, first in enumerate(self._next_online)]
            complete = [
                (start, i)
                for i, start in enumerate(starts)
                if start + self._length <= self._streams[i].written
            ]
            if not complete:
                break
            start, i = min(complete)
            self._next_online[i] = start + self._length
            taken.append((i, start))
        return taken

    def _draw(self, count: int) -> list[tuple[int, int]]:
        """Draw `count` chunks (stream, first step), a share of them around terminated steps."""
        chunks = self._draw_uniformly(count)
        if self._terminated_share == 0:
            return chunks
        for slot in np.flatnonzero(self._rng.random(count) < self._terminated_share):
            chunks[slot] = self._draw_terminated() or chunks[slot]
        return chunks

    def _draw_terminated(self) -> tuple[int, int] | None:
        """Draw a terminated step uniformly, then a chunk that holds it; None if no chunk holds one."""
        last = [stream.written - self._length for stream in self._streams]
        lowest = [self._lowest(i) for i in range(self._num_envs)]
        candidates = [
            indices[bisect_left(indices, low) :] if low <= high else []
            for indices, low, high in zip(self._terminated, lowest, last, strict=True)
        ]
        ends = np.cumsum([len(indices) for indices in candidates])
        if ends[-1] == 0:
            return None
        drawn = int(self._rng.integers(ends[-1]))
        i = int(np.searchsorted(ends, drawn, side="right"))
        step = candidates[i][drawn - int(ends[i])]  # a negative index counts from the newest
        low, high = max(lowest[i], step - self._length + 1), min(step, last[i])
        return i, int(self._rng.integers(low, high + 1))

    def _draw_uniformly(self, count: int) -> list[tuple[int, int]]:
        """Draw `count` chunks (stream, first step), uniformly over all chunks of all streams."""
        counts = self._chunk_counts()
        assert counts.any(), "sampled before one sequence was complete"
        ends = counts.cumsum()
        drawn = self._rng.integers(ends[-1], size=count)
        streams = np.searchsorted(ends, drawn, side="right")
        return [
            (i, self._lowest(i) + n - int(ends[i] - counts[i]))
            for i, n in zip(streams.tolist(), drawn.tolist(), strict=True)
        ]


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
