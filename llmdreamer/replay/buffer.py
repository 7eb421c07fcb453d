"""The replay buffer: one stream of rows per environment on disk, sampled in sequences."""

from __future__ import annotations

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
    """Rows in the order they were lived, and T-row chunks of them with one row of context.

    Episodes may begin and end anywhere inside a chunk; `is_first` is what was appended, on every
    row. Rows are never changed in place, so cutting the streams back to a checkpoint's cursor gives
    the very buffer that was there then.

    Args:
        folder: of this buffer alone; rows already there are taken over (`clear` removes them).
        spec: of the environments.
        num_envs: streams; each keeps capacity // num_envs rows, the newest.
        capacity: rows kept for sampling, over all streams.
        sequence_length: T, trained rows of a chunk.
        seed: of the sampler.
        online: serve each newly completed chunk once before any uniform one, as DreamerV3 does.
        slack: rows of each stream kept on disk beyond its capacity, so that a checkpoint this many
            rows old still finds what it could sample; None: a quarter of it, at least one file.

    Raises:
        ConfigError: if a stream cannot hold one chunk and its context, the folder holds rows of
            another layout, or the disk has no room to begin.
    """

    def __init__(
        self,
        folder: Path,
        spec: EnvSpec,
        num_envs: int,
        capacity: int,
        sequence_length: int,
        seed: int,
        *,
        online: bool = True,
        slack: int | None = None,
    ) -> None:
        limit = capacity // num_envs
        if limit < sequence_length + 1:
            raise ConfigError(
                f"replay.capacity={capacity} over {num_envs} environments is less than one sequence"
                f" and its context row ({sequence_length + 1}) each; nothing would train"
            )
        self._row = layout.row_dtype(spec)
        self._folder, self._spec, self._num_envs = folder, spec, num_envs
        self._limit, self._length, self._online = limit, sequence_length, online
        segment = layout.segment_rows(self._row, limit)
        self._slack = max(limit // 4, segment) if slack is None else slack
        layout.claim_folder(folder, spec, num_envs, self._row)
        stream_bytes = (limit + self._slack + segment) * self._row.itemsize
        layout.check_room(folder, num_envs * stream_bytes, num_envs * segment * self._row.itemsize)
        self._streams = [
            Stream(folder / f"stream-{i:04d}", self._row, segment) for i in range(num_envs)
        ]
        self._start = [max(s.first, s.written - limit) for s in self._streams]
        self._next_online = [stream.written for stream in self._streams]
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the rows that can be sampled, over all streams."""
        return sum(s.written - start for s, start in zip(self._streams, self._start, strict=True))

    @property
    def ready(self) -> bool:
        """Whether there is a chunk to sample."""
        return bool(self._chunk_counts().any())

    def append(
        self, step: TimeStep, action: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Write one row of each environment where `mask` (n,) is true, of all if it is None.

        Args:
            step: what was seen.
            action: (n, A), chosen after seeing it; zeros on an episode's last row.

        Raises:
            OSError: if the disk is full; then no stream has the row, and the call may be repeated.
        """
        indices = range(self._num_envs) if mask is None else np.flatnonzero(mask).tolist()
        rows = self._rows(step, action)
        for i in indices:
            last = step.terminated[i] | step.truncated[i]
            assert not (last and rows["action"][i].any()), f"an action on the last row of {i}"
            begun = self._streams[i].written > 0
            assert begun or step.is_first[i], f"stream {i} must begin with an episode"
            self._streams[i].write(rows[i : i + 1])
        for i in indices:
            stream = self._streams[i]
            stream.commit()
            self._start[i] = max(self._start[i], stream.written - self._limit)
            stream.drop_before(stream.written - self._limit - self._slack)

    def sample(self, batch_size: int) -> SequenceBatch:
        """Return B chunks of T rows, each behind one context row, on the CPU.

        A chunk that begins with the first row of its stream has a context row of zeros: nothing of
        it enters, the chunk's first row being `is_first`.
        """
        chunks = self._take_online(batch_size) if self._online else []
        chunks += self._draw(batch_size - len(chunks))
        rows = np.zeros((batch_size, self._length + 1), self._row)
        for out, (i, start) in zip(rows, chunks, strict=True):
            context = min(start, 1)
            self._streams[i].read(start - context, out[1 - context :])
        keys = {key: layout.observation_field(key) for key in self._spec.observations}
        return SequenceBatch(
            observations={key: _tensor(rows[field]) for key, field in keys.items()},
            action=_tensor(rows["action"]),
            reward=_tensor(rows["reward"]),
            is_first=_tensor(rows["is_first"]),
            terminated=_tensor(rows["terminated"]),
        )

    def flush(self) -> None:
        """Return once all rows are on the disk itself; a checkpoint is written after this."""
        self.flushing()()

    def flushing(self) -> Callable[[], None]:
        """What does as `flush` for the rows so far, in any thread, while more are appended."""
        syncs = [stream.syncing() for stream in self._streams]

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
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut every stream back to the state's cursor and go on from there.

        Raises:
            ConfigError: if rows that the state counts are not on disk; nothing is cut then.
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
                    f"{stream.folder} holds rows {stream.first}..{stream.written}, the checkpoint "
                    f"needs {start}..{written}; resume from another checkpoint or start anew"
                )
        for stream, _, written in needs:
            stream.cut(written)
        self._start = [max(start, written - self._limit) for _, start, written in needs]
        self._next_online = list(state["online"])
        self._rng.bit_generator.state = state["rng"]

    def clear(self) -> None:
        """Remove every row, as before the first of a run."""
        for stream in self._streams:
            stream.clear()
        self._start = [0] * self._num_envs
        self._next_online = [0] * self._num_envs

    def close(self) -> None:
        """Give the open files back."""
        for stream in self._streams:
            stream.close()

    def _rows(self, step: TimeStep, action: NDArray[np.float32]) -> NDArray[Any]:
        assert action.shape == (self._num_envs, self._spec.action_size), action.shape
        rows = np.zeros(self._num_envs, self._row)
        for key in self._spec.observations:
            field, seen = layout.observation_field(key), step.observations[key]
            assert rows[field].shape == seen.shape and rows[field].dtype == seen.dtype, (
                f"{key}: {seen.dtype}{seen.shape}, not {rows[field].dtype}{rows[field].shape}"
            )
            rows[field] = seen
        rows["action"] = action
        for name in ("reward", "is_first", "terminated", "truncated"):
            rows[name] = getattr(step, name)
        return rows

    def _lowest(self, i: int) -> int:
        # Row 0 needs no context; any other first row is the context of the one after it.
        return self._start[i] + 1 if self._start[i] > 0 else 0

    def _chunk_counts(self) -> NDArray[np.int64]:
        last = [stream.written - self._length for stream in self._streams]
        counts = [last[i] - self._lowest(i) + 1 for i in range(self._num_envs)]
        return np.maximum(counts, 0)

    def _take_online(self, count: int) -> list[tuple[int, int]]:
        """Return up to `count` chunks (stream, first row) not served yet, oldest first."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            starts = [max(row, self._lowest(i)) for i, row in enumerate(self._next_online)]
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
        """Return `count` chunks (stream, first row), each of all streams' equally likely."""
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
