"""What a sampled chunk holds, and how chunks are chosen."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numbered_steps import fill, make_step, replay
from refusals import refused

from llmdreamer.replay import SequenceReplay
from llmdreamer.types import EnvSpec, SequenceBatch, TimeStep


def starts(batch: SequenceBatch) -> list[tuple[int, int]]:
    """Return (environment, number) of the first trained step of each chunk."""
    seen = batch.observations["state"][:, 1]
    return [(int(env), int(number)) for env, number in seen]


def test_chunk_is_consecutive_steps_behind_one_context_step(tmp_path):
    buffer = replay(tmp_path, online=False)
    fill(buffer, 0, 30)
    batch = buffer.sample(8)
    assert batch.reward.shape == (8, 5) and batch.reward.dtype == torch.float32
    assert batch.action.shape == (8, 5, 2) and batch.observations["state"].shape == (8, 5, 2)
    for b, (_, first) in enumerate(starts(batch)):
        numbers = torch.arange(first - 1, first + 4)
        if first == 0:
            continue
        assert batch.reward[b].tolist() == numbers.tolist()
        assert batch.is_first[b].tolist() == (numbers % 5 == 0).tolist()
        last, even = numbers % 5 == 4, numbers // 5 % 2 == 0
        assert batch.terminated[b].tolist() == (last & even).tolist()
        assert batch.action[b].argmax(1)[~last].tolist() == (numbers % 2)[~last].tolist()
        assert not batch.action[b][last].any()


def test_is_first_is_returned_as_stored(tmp_path):
    buffer = replay(tmp_path, online=False)
    fill(buffer, 0, 60, episode=1000)  # one long episode: only step 0 is first
    batch = buffer.sample(64)
    first = torch.tensor([number for _, number in starts(batch)])
    assert torch.equal(batch.is_first[:, 1], first == 0)
    assert torch.equal(batch.is_first[:, 0], first == 1)  # the context step is step 0
    assert not batch.is_first[:, 2:].any()


def test_first_chunk_has_context_of_zeros(tmp_path):
    buffer = replay(tmp_path, length=4)
    fill(buffer, 0, 4)
    batch = buffer.sample(1)
    assert batch.reward.tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]
    assert batch.is_first.tolist() == [[False, True, False, False, False]]
    assert batch.observations["state"][0, 0].tolist() == [0.0, 0.0]


def test_buffer_is_ready_after_one_chunk(tmp_path):
    buffer = replay(tmp_path, length=4)
    fill(buffer, 0, 3)
    assert not buffer.ready
    with refused(AssertionError, "sequence"):
        buffer.sample(1)
    fill(buffer, 3, 4)
    assert buffer.ready


def test_chunks_span_segment_files(tmp_path):
    buffer = replay(tmp_path, capacity=24, length=7, online=False)  # files of 24 // 8 = 3 steps
    fill(buffer, 0, 20)
    assert len(list(tmp_path.rglob("*.steps"))) == 7
    for b, (_, first) in enumerate(starts(batch := buffer.sample(50))):
        assert batch.reward[b, 1:].tolist() == list(range(first, first + 7))


def test_chunks_are_sampled_uniformly_over_streams(tmp_path):
    buffer = replay(tmp_path, n=2, length=4, online=False)
    fill(buffer, 0, 6, n=2)  # 3 chunks each
    for number in range(6, 13):  # the second stream is 7 steps longer: 10 chunks
        buffer.append(*make_step([0, number]), mask=np.array([False, True]))
    counts = Counter(start for _ in range(13) for start in starts(buffer.sample(200)))
    expected = [(0, s) for s in range(3)] + [(1, s) for s in range(10)]
    assert sorted(counts) == expected
    chi_square = sum((counts[key] - 200) ** 2 / 200 for key in expected)
    assert chi_square < 32.9  # the 0.1 % point of 12 degrees of freedom


def test_masked_append_writes_only_masked_streams(tmp_path):
    buffer = replay(tmp_path, n=3)
    fill(buffer, 0, 1, n=3)
    buffer.append(*make_step([9, 1, 9]), mask=np.array([False, True, False]))
    assert buffer.state_dict()["written"] == [1, 2, 1]
    assert len(buffer) == 4


def test_online_chunks_are_served_once_before_uniform_ones(tmp_path):
    buffer = replay(tmp_path, n=2, length=4)
    fill(buffer, 0, 11, n=2)
    assert starts(buffer.sample(3)) == [(0, 0), (1, 0), (0, 4)]
    assert starts(buffer.sample(3))[0] == (1, 4)
    fill(buffer, 11, 12, n=2)
    assert starts(buffer.sample(2)) == [(0, 8), (1, 8)]
    before = buffer.state_dict()["online"]
    buffer.sample(50)
    assert buffer.state_dict()["online"] == before == [12, 12]


def test_buffer_without_online_queue_samples_all_chunks(tmp_path):
    buffer = replay(tmp_path, length=4, online=False)
    fill(buffer, 0, 200)
    assert starts(buffer.sample(3)) != [(0, 0), (0, 4), (0, 8)]


def test_full_buffer_samples_only_the_newest_steps(tmp_path):
    buffer = replay(tmp_path, capacity=40, length=4, slack=0)
    fill(buffer, 0, 103)
    assert len(buffer) == 40
    firsts = {first for _ in range(20) for _, first in starts(buffer.sample(40))}
    # Rows 63..102 are kept; 63 is context only.
    assert firsts == set(range(64, 100))


def test_images_and_vectors_keep_their_dtypes(tmp_path):
    spec = EnvSpec({"picture": (2, 2, 3), "speed": (1,)}, action_size=3, discrete=True)
    buffer = SequenceReplay(tmp_path / "replay", spec, 1, 100, 2, seed=0)
    picture = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    flag = np.array([False])
    for number in range(3):
        observations = {"picture": picture + number, "speed": np.full((1, 1), 0.5, np.float32)}
        first = np.array([number == 0])
        step = TimeStep(observations, np.zeros(1, np.float32), first, flag, flag)
        buffer.append(step, np.zeros((1, 3), np.float32))
    batch = buffer.sample(1)
    assert batch.observations["picture"].dtype == torch.uint8
    assert batch.observations["picture"][0, 2].tolist() == (picture[0] + 1).tolist()
    assert batch.observations["speed"][0, :, 0].tolist() == [0.0, 0.5, 0.5]


def test_append_asserts_its_contract(tmp_path):
    buffer = replay(tmp_path)
    with refused(AssertionError, "begin"):
        buffer.append(*make_step([1]))
    fill(buffer, 0, 4)
    step, _ = make_step([4])  # an episode's last
    with refused(AssertionError, "action", "0"):
        buffer.append(step, np.ones((1, 2), np.float32))
    with refused(AssertionError, "float64"):
        doubled = {"state": step.observations["state"].astype(np.float64)}
        flags = (step.is_first, step.terminated, step.truncated)
        buffer.append(TimeStep(doubled, step.reward, *flags), np.zeros((1, 2), np.float32))
    assert buffer.state_dict()["written"] == [4]


def test_terminated_share_of_chunks_holds_a_terminated_step(tmp_path):
    buffer = replay(tmp_path, n=2, length=4, online=False, terminated_share=0.5)
    fill(buffer, 0, 200, n=2, episode=100)  # step 99 terminates, step 199 truncates
    batch = buffer.sample(4000)
    held = batch.terminated[:, 1:].any(1)
    assert 0.46 < held.float().mean() < 0.57  # a half, and 4 of 197 of the uniform ones
    counts = Counter(start for start, hit in zip(starts(batch), held, strict=True) if hit)
    assert sorted(counts) == [(env, first) for env in (0, 1) for first in (96, 97, 98, 99)]
    assert min(counts.values()) > 0.7 * max(counts.values())


def test_chunks_around_terminated_steps_stay_within_capacity(tmp_path):
    buffer = replay(tmp_path, capacity=40, length=4, online=False, terminated_share=1.0)
    fill(buffer, 0, 103)  # steps 63..102 are kept; steps 64, 74, 84 and 94 terminate
    firsts = {first for _, first in starts(buffer.sample(500))}
    assert firsts == {64} | {end - k for end in (74, 84, 94) for k in range(4)}


def test_replay_without_terminated_steps_is_sampled_uniformly(tmp_path):
    buffer = replay(tmp_path, length=4, online=False, terminated_share=1.0)
    fill(buffer, 0, 30, episode=100)
    assert buffer.sample(5).terminated.sum() == 0
