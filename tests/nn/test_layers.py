import pytest
import torch

from llmdreamer.nn.functional import ones_at
from llmdreamer.nn.layers import (
    MLP,
    CategoricalHead,
    ContinueHead,
    TwoHotHead,
    VectorDecoder,
    VectorEncoder,
)
from llmdreamer.types import IndexedLatent


def test_linear_layer_at_initialization_keeps_the_variance():
    torch.manual_seed(0)
    layer = MLP(4096, 1, 0, out=256)
    out = layer(torch.randn(64, 4096))
    assert out.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("streams", [2, 50])
def test_mlp_reads_indexed_latent_as_its_feature(layers, streams):
    mlp = MLP(3 + 8, 5, layers, 4)
    latent = IndexedLatent(
        torch.randn(streams, 3), torch.randint(4, (streams, 2)) + torch.tensor([0, 4])
    )
    feature = torch.cat([latent.deter, ones_at(latent.stoch_index, 8, torch.float32)], -1)
    torch.testing.assert_close(mlp(latent), mlp(feature))
    torch.testing.assert_close(mlp(latent[1:]), mlp(feature[1:]))


def test_two_hot_head_at_initialization_predicts_zero():
    head = TwoHotHead(8, 16, 1, 255)
    logits = head(torch.randn(5, 8))
    assert head.mean(logits).tolist() == [0.0] * 5


def test_two_hot_head_in_symlog_averages_and_targets_in_symlog_space():
    head = TwoHotHead(8, 16, 1, 41, in_symlog=True)  # a bin for each whole number
    assert head.mean(head(torch.randn(5, 8))).tolist() == [0.0] * 5
    # Half on symlog 1, half on symlog 3: symlog 2, not the mean of e - 1 and e**3 - 1.
    logits = torch.full((1, 41), -1e9)
    logits[0, [21, 23]] = 0.0
    torch.testing.assert_close(head.mean(logits), torch.tensor([torch.e**2 - 1]))
    # A target of symlog 1.25 is three quarters of bin 1, one quarter of bin 2.
    logits = torch.zeros(1, 41, requires_grad=True)
    head.loss(logits, torch.tensor([torch.e**1.25 - 1])).sum().backward()
    expected = torch.full((1, 41), 1 / 41)
    expected[0, 21] -= 0.75
    expected[0, 22] -= 0.25
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-5)


def test_vector_encoder_concatenates_keys_in_order():
    encoder = VectorEncoder({"b": (1,), "a": (2,)}, ["a", "b"], 4, 1)
    encoder.mlp = torch.nn.Identity()
    seen = encoder({"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([[-1.0]])})
    torch.testing.assert_close(seen, torch.tensor([[0.0, 1.0, -1.0]]))


def test_vector_encoder_adds_bin_weights_of_each_number():
    encoder = VectorEncoder({"a": (2,)}, ["a"], 4, 1, bins=4)  # at -6, -2, 2, 6
    encoder.mlp = torch.nn.Identity()
    seen = encoder({"a": torch.tensor([[-1.0, 7.0]])})
    torch.testing.assert_close(
        seen, torch.tensor([[-1.0, 7.0, 0.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 1.0]])
    )


def test_vector_encoder_of_many_numbers_has_no_bins():
    encoder = VectorEncoder({"a": (257,)}, ["a"], 4, 1, bins=41)
    assert encoder({"a": torch.zeros(1, 257)}).shape == (1, 4) and encoder.bins == 0


def test_vector_decoder_loss_is_the_summed_squared_error():
    decoder = VectorDecoder(3, {"a": (2,), "b": (1,)}, ["a", "b"], 4, 1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()  # predicts 0
    vectors = {"a": torch.tensor([[[1.0, 0.0]]]), "b": torch.tensor([[[-2.0]]])}
    torch.testing.assert_close(decoder.loss(torch.zeros(1, 1, 3), vectors), torch.tensor([[5.0]]))


def test_continue_target_is_the_discount_and_zero_if_terminated():
    head = ContinueHead(2, 4, 1, gamma=0.75)
    # At logit 0 the cross-entropy is ln 2 whatever the target is; its slope is p - target.
    logits = torch.zeros(2, requires_grad=True)
    head.loss(logits, torch.tensor([False, True])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.5 - 0.75, 0.5]))


def test_continue_probability_is_the_discount_without_gamma():
    for discount_in_head in (True, False):
        head = ContinueHead(2, 4, 1, 0.75, discount_in_head=discount_in_head)
        logits = torch.tensor([0.0, 1.0])
        torch.testing.assert_close(head.probability(logits) * 0.75, head.discount(logits))


def test_continue_head_without_learned_gamma_multiplies_by_gamma():
    inside, outside = (
        ContinueHead(2, 4, 1, 0.75, discount_in_head=value) for value in (True, False)
    )
    logits = torch.zeros(2, requires_grad=True)
    outside.loss(logits, torch.tensor([False, True])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.5 - 1.0, 0.5]))
    assert inside.discount(logits).tolist() == [0.5, 0.5]
    assert outside.discount(logits).tolist() == [0.375, 0.375]


def test_categorical_head_keeps_every_class_above_its_unimix_share():
    head = CategoricalHead(4, 8, 1, (3, 5), unimix_share=0.1)
    torch.nn.init.normal_(head.mlp[-1].weight, std=100.0)
    probs = head(torch.randn(7, 4)).exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(7, 3))
    assert probs.min().item() >= 0.1 / 5 - 1e-6
