"""Texts in the backbone's sequence: read where an episode begins, in training, imagination and acting."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmdreamer.agent.agent import Agent
from llmdreamer.backbones import attention
from llmdreamer.backbones.text import TextPrompt, TokenEmbedding
from llmdreamer.nn.functional import mode_one_hot
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model import model

torch.set_num_threads(1)
B, T, ROOM = 2, 7, 6
SPEC = EnvSpec({"state": (3,), "mission": (ROOM,)}, 2, True, texts=("mission",))
TEXTS = ["algo.text_keys.sequence=[mission]"]
ARMS = {
    "gpt2": ["backbone=gpt2"],
    "smollm2": ["backbone=smollm2"],
    "qwen3": ["backbone=qwen3"],
    "pythia": ["backbone=pythia"],
    "window": [
        *("backbone=hf", "backbone.model_type=opt"),
        "backbone.config={hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,"
        "num_attention_heads:2,ffn_dim:64}",
    ],
    "mamba": ["backbone=mamba"],
    "mamba2": ["backbone=mamba2"],
    "gru": ["backbone=gru"],
    "reference": ["backbone=gru", "posterior=coupled"],
}
CONTEXTS = [5, 32]  # shorter than a text and its episode; long enough for both


def text(words: str) -> torch.Tensor:
    return torch.tensor(list(words.encode().ljust(ROOM, b"\0")), dtype=torch.uint8)


def make_batch(*missions: str) -> SequenceBatch:
    """B sequences; in the second, an episode with the last mission begins at step 4."""
    generator = torch.Generator().manual_seed(0)
    shape = (B, T + 1)
    texts = (
        torch.stack([text(mission) for mission in missions[:B]]).unsqueeze(1).repeat(1, T + 1, 1)
    )
    texts[1, 4:] = text(missions[-1])
    is_first = torch.zeros(shape, dtype=torch.bool)
    is_first[1, 4] = True
    state = torch.randn(*shape, 3, generator=generator)
    action = F.one_hot(torch.randint(2, shape, generator=generator), 2).float()
    none = torch.zeros(shape, dtype=torch.bool)
    return SequenceBatch({"state": state, "mission": texts}, action, none.float(), is_first, none)


@pytest.fixture(params=ARMS)
def arm(request):
    return ARMS[request.param]


@pytest.fixture
def make(compose, monkeypatch):
    monkeypatch.setattr(model, "sample_one_hot", mode_one_hot)

    def made(*overrides, context=32):
        torch.manual_seed(0)
        length = f"algo.world_model.hf_model.seq_len={context}"
        return Agent(compose(*TEXTS, length, *overrides), SPEC).eval()

    return made


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


def deters(agent, batch):
    return agent.world_model.observe(batch)[1].latent.deter


def cut(batch, index, begin, end):
    """Return a batch of one sequence with its steps begin..end."""
    steps = (slice(index, index + 1), slice(begin, end))
    observations = {key: value[steps] for key, value in batch.observations.items()}
    flags = [value[steps] for value in (batch.action, batch.reward, batch.is_first)]
    return SequenceBatch(observations, *flags, batch.terminated[steps])


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
def test_packed_episodes_read_the_same_texts_as_alone(arm, context, make):
    agent, batch = make(*arm, context=context), make_batch("ab", "abcdef", "c")
    together = deters(agent, batch)
    close(together[:1], deters(agent, cut(batch, 0, 0, T + 1)))
    close(together[1:, :3], deters(agent, cut(batch, 1, 0, 4)))
    if "posterior=coupled" not in arm:  # its context step belongs to the previous episode
        close(together[1:, 3:], deters(agent, cut(batch, 1, 3, T + 1)))


@torch.no_grad()
def test_episode_depends_on_its_own_text_from_its_first_step(arm, make):
    agent = make(*arm)
    base, other_last, other_first = (
        deters(agent, make_batch(*missions))
        for missions in (("ab", "abc", "c"), ("ab", "abc", "d"), ("ab", "x", "c"))
    )
    close(base[0], other_last[0])
    close(base[1, :3], other_last[1, :3])
    assert ((base - other_last)[1, 3:].abs().amax(-1) > 1e-4).all()
    close(base[1, 3:], other_first[1, 3:])
    assert ((base - other_first)[1, :3].abs().amax(-1) > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
def test_act_reads_texts_as_training_does(arm, context, make):
    agent, batch = make(*arm, context=context), make_batch("ab", "abcdef", "c")
    # Step 0 of a batch is context only; an episode that begins in step 1 is compared whole.
    batch.is_first[:, 0] = batch.is_first[:, 1] = True
    seen, actions = [], []
    agent.world_model.deter_norm.register_forward_hook(lambda _, __, output: seen.append(output))
    state = agent.initial_state(B)
    for t in range(T + 1):
        observations = {key: value[:, t] for key, value in batch.observations.items()}
        action, state = agent.act(observations, batch.is_first[:, t], state, explore=False)
        actions.append(action)
    acted = torch.stack(seen, 1)
    close(deters(agent, replace(batch, action=torch.stack(actions, 1))), acted[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "steps", [None, 1]
)  # with a number, attention may share the prefix of the cache
def test_imagination_depends_on_the_texts_as_training_does(arm, context, steps, make, monkeypatch):
    monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", 0)
    world, batch = make(*arm, context=context).world_model, make_batch("ab", "abcdef", "c")
    _, observed = world.observe(batch)
    starts = torch.arange(T).expand(B, T)
    latent, cache = world.start_imagination(observed, starts, steps)
    imagined, _ = world.transition(latent, batch.action[:, 1:].flatten(0, 1), cache)
    # The next time step gets the same token, if it belongs to the same episode.
    continues = ~batch.is_first[:, 2:]
    following = observed.latent.deter[:, 1:]
    close(imagined.deter.unflatten(0, (B, T))[:, :-1][continues], following[continues])


def test_prompt_gets_gradient_through_the_backbone(arm, make):
    agent = make(*arm, "algo.text_keys.encoder=[]").train()
    deters(agent, make_batch("ab", "abc", "c"))[1, 4:].square().sum().backward()
    prompt = agent.world_model.prompt
    assert all(weight.grad.abs().sum() > 0 for weight in prompt.parameters())
    # Only the bytes of that episode's text have a gradient.
    reached = prompt.text_embedding.embedding.weight.grad.abs().sum(-1) > 0
    assert reached.nonzero().flatten().tolist() == [ord("c")]


def test_backbone_without_the_sequence_key_reads_no_text(compose):
    torch.manual_seed(0)
    agent = Agent(compose("backbone=gru", "algo.text_keys.encoder=[mission]"), SPEC)
    assert agent.world_model.prompt is None and agent.world_model.encoder.text is not None


def test_encoder_and_prompt_share_one_text_embedding(make):
    world = make("backbone=gru", "algo.text_keys.encoder=[mission]").world_model
    assert world.prompt.text_embedding is world.encoder.text.text_embedding


def test_sequence_key_that_is_not_text_is_refused(compose):
    with pytest.raises(
        ConfigError, match=r"algo.text_keys.sequence=\[state\]: 'state' is of kind vector, not text"
    ):
        Agent(compose("backbone=gru", "algo.text_keys.sequence=[state]"), SPEC)


class LetterTokenizer:
    """A tokenizer with one token per letter."""

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) - ord("a") for letter in text]


@torch.no_grad()
def test_prompt_with_backbone_tokens_uses_their_embeddings_unchanged(make):
    backbone = make("backbone=gru").world_model.backbone
    weight = 0.02 * torch.randn(26, backbone.width)
    backbone.input_rms = weight.square().mean().sqrt().item()
    prompt = TextPrompt(TokenEmbedding(LetterTokenizer(), weight), ["mission"], backbone)
    words, length = prompt({"mission": torch.stack([text("abc"), text("d"), text("")])})
    assert length.tolist() == [3, 1, 1] and not list(prompt.parameters())
    torch.testing.assert_close(words[0], weight[:3])
    torch.testing.assert_close(words[1, 2], weight[3])
    assert (words[1, :2] == 0).all() and (words[2] == 0).all()


@torch.no_grad()
def test_prompt_concatenates_several_texts_scaled_to_the_rms_of_tokens(make):
    backbone = make("backbone=gru").world_model.backbone
    backbone.input_rms = 0.5
    table = make("backbone=gru").world_model.prompt.text_embedding
    prompt = TextPrompt(table, ["a", "b"], backbone)
    words, length = prompt({"a": text("xy")[None], "b": text("z")[None]})
    assert words.shape == (1, 3, backbone.width) and length.tolist() == [3]
    torch.testing.assert_close(
        words.square().mean(-1).sqrt(), torch.full((1, 3), 0.5), rtol=1e-3, atol=0
    )
    other, _ = prompt({"a": text("x")[None], "b": text("yz")[None]})
    torch.testing.assert_close(other, words)
