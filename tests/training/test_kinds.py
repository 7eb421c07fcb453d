"""Every kind of observation and action through a small run: collect, train, evaluate, resume."""

from copy import deepcopy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from llmdreamer.evaluation.episodes import evaluate, record_video
from llmdreamer.training.trainer import Trainer

torch.set_num_threads(1)
SMALL = [
    "backbone=gru",
    "algo.dense_units=16",
    "algo.cnn_depth=2",
    "algo.horizon=3",
    "algo.per_rank_batch_size=2",
    "algo.per_rank_sequence_length=4",
    "algo.imag_starts=2",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.optimizer.warmup=0",
    # Without free nats, so that the prior is pulled even where it is close.
    "algo.world_model.kl_free_nats=0",
    "algo.learning_starts=12",
    "algo.total_steps=100",
    "replay_ratio=1",
    "replay.capacity=100",
    "env.image_size=16",
    "env.max_text_bytes=40",
]
LIGHT_ROOM = [
    *("env=gym", "env.id=lightroom:LightRoom-v0", "algo.mlp_keys.encoder=[]"),
    *("algo.cnn_keys.encoder=[]", "algo.text_keys.encoder=[]"),
]
IMAGE, TEXT = "algo.cnn_keys.encoder=[image]", "algo.text_keys.encoder=[mission]"
CASES = {
    "image": [*LIGHT_ROOM, IMAGE, "+env.kwargs.show=[image]"],
    "image and text, two environments": [*LIGHT_ROOM, IMAGE, TEXT, "env.num_envs=2"],
    "text, also as a prompt of each episode": [
        *LIGHT_ROOM,
        TEXT,
        "algo.text_keys.sequence=[mission]",
        "algo.mlp_keys.encoder=[]",
        "env.num_envs=2",
    ],
    "text alone": [*LIGHT_ROOM, "algo.text_keys.encoder=[text]", "+env.kwargs.show=[mission]"],
    "several choices": [*LIGHT_ROOM, IMAGE, "+env.kwargs.act=multi"],
    "continuous": ["env=pendulum"],
    "tuples and dicts": ["env=gym", "env.id=KindsOfSpaces-v0"],
    "bits": ["env=gym", "env.id=KindsOfSpaces-v0", "+env.kwargs={seen: bits, act: bits}"],
    "matrix and integers": [
        "env=gym",
        "env.id=KindsOfSpaces-v0",
        "+env.kwargs={seen: matrix, act: integers}",
    ],
    "real image": ["env=gym", "env.id=KindsOfSpaces-v0", "+env.kwargs={seen: image, act: wide}"],
    "continuous, image, text": [*LIGHT_ROOM, IMAGE, TEXT, "+env.kwargs.act=box"],
}


SEEN = {
    "nested": spaces.Tuple(
        [
            spaces.Discrete(3),
            spaces.Dict(a=spaces.MultiDiscrete([2, 3]), b=spaces.Box(-1, 1, (2, 2))),
        ]
    ),
    "bits": spaces.MultiBinary([2, 2]),
    "matrix": spaces.Box(-(2**40), 2**40, (2, 3), np.int64),
    "image": spaces.Box(0, 1, (3, 20, 24)),
}
ACTS = {
    "one": spaces.Discrete(2),
    "bits": spaces.MultiBinary(3),
    "integers": spaces.Box(-2, 3, (2,), np.int32),
    "wide": spaces.Box(-1000, 1000, (1,), np.int64),
}


class KindsOfSpaces(gym.Env):
    """Shows samples of a space and checks every action."""

    def __init__(self, seen="nested", act="one"):
        self.observation_space, self.action_space = deepcopy(SEEN[seen]), ACTS[act]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 1.0, False, False, {}


if "KindsOfSpaces-v0" not in gym.registry:
    gym.register("KindsOfSpaces-v0", KindsOfSpaces, max_episode_steps=9)


@pytest.fixture
def trainer(compose, tmp_path):
    trainers = []

    def make(*overrides, folder="run"):
        trainers.append(Trainer(compose(*SMALL, *overrides), tmp_path / folder))
        return trainers[-1]

    yield make
    for one in trainers:
        one.close()


def train(trainer, updates):
    metrics = []
    while len(metrics) < updates:
        trainer.collect_step()
        metrics += trainer.train_updates()
    return metrics


@pytest.mark.parametrize("case", CASES)
def test_two_updates_reach_every_parameter(case, trainer):
    trainer = trainer(*CASES[case])
    agent = trainer.agent
    before = {name: param.detach().clone() for name, param in agent.named_parameters()}
    metrics = train(trainer, 2)
    # Heads that start at zero pass no gradient on until they have moved, and not every batch has an
    # episode's first step: hence some more updates.
    metrics += train(trainer, 6)
    for update in metrics:
        for name, value in update.items():
            # A batch without a terminated step has no mean over terminated steps: NaN, never infinite.
            has_no_mean = name.endswith("_terminated") and value.isnan()
            assert value.isfinite() or has_no_mean, name
    for name, param in agent.named_parameters():
        assert param.isfinite().all() and not torch.equal(param, before[name]), name
    world = agent.world_model
    assert (world.encoder.image is not None) == ("image" in case or case == "several choices")
    assert (world.encoder.text is not None) == ("text" in case)
    if "continuous" in case:
        last = agent.behavior.actor.mlp[-1]  # outputs A means, then A deviations
        means, deviations = last.weight.grad.chunk(2)
        assert means.abs().sum() > 0 and deviations.abs().sum() > 0


def test_continuous_action_enters_the_next_token_clipped(trainer):
    trainer = trainer("env=pendulum")
    seen = []
    trainer.envs.step = lambda action, plain=trainer.envs.step: seen.append(action) or plain(action)
    for _ in range(40):
        trainer.collect_step()
    actions = np.concatenate(seen)
    assert actions.shape == (40, 1) and (np.abs(actions[:12]) <= 1).all()
    assert (np.abs(actions[12:]) > 1).any()  # the policy's own samples are not bounded
    tokens = trainer.agent.world_model.tokens
    stoch = torch.zeros(2, 4, 4)
    is_first = torch.zeros(2, dtype=torch.bool)
    beyond, within = (tokens(stoch, torch.full((2, 1), value), is_first) for value in (7.0, 1.0))
    assert torch.equal(beyond, within)


def test_posterior_depends_on_the_mission_and_passes_gradient_to_it(trainer):
    world = trainer(*CASES["image and text, two environments"]).agent.world_model
    texts = torch.zeros(2, 40, dtype=torch.uint8)
    for text, mission in zip(texts, (b"light the red lamp", b"light the blue lamp"), strict=True):
        text[: len(mission)] = torch.tensor(list(mission))
    seen = {"image": torch.zeros(2, 16, 16, 3, dtype=torch.uint8), "mission": texts}
    posterior = world.posterior(world.encoder(seen, 1))
    assert (posterior[0] - posterior[1]).abs().max() > 1e-3
    posterior.exp()[..., 0].sum().backward()
    gradient = world.encoder.text.text_embedding.embedding.weight.grad
    reached = gradient.abs().sum(1) > 0
    assert set(torch.nonzero(reached).flatten().tolist()) == set(b"light the red lamp blue")


@pytest.mark.parametrize("case", ["image and text, two environments", "continuous"])
def test_policy_is_evaluated_and_recorded_as_video(case, trainer, tmp_path):
    trainer = trainer(*CASES[case], "env.max_episode_steps=6")
    config = trainer.config
    one, two = (evaluate(trainer.agent, config.env, 2, config.seed, greedy=True) for _ in range(2))
    assert np.array_equal(one.returns, two.returns) and one.lengths.tolist() == [6, 6]
    video = record_video(
        trainer.agent, config.env, config.seed, tmp_path / "policy.gif", greedy=True
    )
    assert video.read_bytes()[:3] == b"GIF"


@pytest.mark.parametrize("case", ["continuous", "continuous, image, text"])
def test_trainer_resumes_from_its_checkpoint(case, trainer, tmp_path):
    first = trainer(*CASES[case], folder="first")
    train(first, 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first.close()

    def resumed():
        second = trainer(*CASES[case], folder="first")
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert (second.policy_step, second.updates) == (first.policy_step, 2)
        return train(second, 2)

    mine, theirs = resumed(), resumed()
    if case == "continuous":  # only Pendulum has a verified snapshot; others begin a new episode
        for key, value in mine[1].items():
            torch.testing.assert_close(value, theirs[1][key], rtol=0, atol=0, equal_nan=True)


def test_episode_ended_by_a_fault_is_truncated_in_the_replay(trainer, tmp_path):
    fault = ["+env.kwargs.show=[state,mission]", "+env.kwargs.fault=raise"]
    once = f"+env.kwargs.once={tmp_path / 'broken'}"
    trainer = trainer(*LIGHT_ROOM, "algo.mlp_keys.encoder=[state]", TEXT, *fault, once)
    stored = []
    append = trainer.replay.append
    trainer.replay.append = lambda step, action, mask=None: (
        stored.append((replace(step), action.copy())) or append(step, action, mask)
    )
    for _ in range(8):
        trainer.collect_step()
    # Step 2 is the last one before the fault: the action chosen there was not executed.
    assert [bool(step.truncated[0]) for step, _ in stored] == [False, False, True] + [False] * 5
    assert [bool(step.is_first[0]) for step, _ in stored] == [True, False, False, True] + [
        False
    ] * 4
    assert not stored[2][1].any() and stored[3][1].any()
    assert trainer.policy_step == 8 and trainer.collector._lengths[0] == 5


def test_replay_stores_pixels_and_texts_as_bytes(trainer):
    trainer = trainer(*CASES["image and text, two environments"])
    step = trainer.replay._dtype
    assert step["observations/image"].base == step["observations/mission"].base == np.uint8
    # Image, mission, four one-hot numbers, reward, three flags, without padding.
    assert step.itemsize == 16 * 16 * 3 + 40 + 4 * 4 + 4 + 3
