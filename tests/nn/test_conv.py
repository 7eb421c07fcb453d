"""Image encoder and decoder: shapes, norm, a loss computed by hand, and learning."""

import pytest
import torch

from llmdreamer.nn.conv import ChannelNorm, ImageDecoder, ImageEncoder

close = torch.testing.assert_close
SHAPES = {"left": (32, 32, 3), "right": (32, 32, 1)}
KEYS = ["left", "right"]


def random_images(*lead: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        key: torch.randint(256, (*lead, *shape), generator=rng).to(torch.uint8)
        for key, shape in SHAPES.items()
    }


def test_channel_norm_matches_torch_rms_norm_over_channels():
    x, norm = torch.randn(2, 5, 3, 4), ChannelNorm(5)
    expected = torch.nn.RMSNorm(5, 1e-4)
    close(norm(x), expected(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("size", "numbers"), [(16, 16), (32, 64), (64, 256), (96, 576)])
def test_image_encoder_width_is_of_side_halved_four_times(size: int, numbers: int):
    encoder = ImageEncoder({"image": (size, size, 3)}, ["image"], depth=4)
    assert encoder.width == numbers  # (size / 16)² * 4 * depth
    seen = {"image": torch.zeros(2, 3, size, size, 3, dtype=torch.uint8)}
    assert encoder(seen, 2).shape == (2, 3, numbers)


def test_image_encoder_reads_every_image_without_mixing_the_batch():
    encoder = ImageEncoder(SHAPES, KEYS, depth=2)
    seen = random_images(3)
    before = encoder(seen, 1)
    seen["right"][1] = 255 - seen["right"][1]
    after = encoder(seen, 1)
    close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_image_decoder_predicts_every_image_in_zero_to_one():
    images = ImageDecoder(7, SHAPES, KEYS, depth=2)(10 * torch.randn(2, 5, 7))
    assert {key: tuple(value.shape) for key, value in images.items()} == {
        "left": (2, 5, 32, 32, 3),
        "right": (2, 5, 32, 32, 1),
    }
    assert all((value >= 0).all() and (value <= 1).all() for value in images.values())


def test_image_decoder_loss_is_squared_error_summed_over_pixels():
    decoder = ImageDecoder(7, {"image": (16, 16, 1)}, ["image"], depth=2)
    torch.nn.init.zeros_(decoder.stages[-1].weight)  # predicts sigmoid(0) = 0.5 for every pixel
    seen = torch.full((1, 2, 16, 16, 1), 255, dtype=torch.uint8)
    seen[0, 1] = 0
    seen[0, 1, 3, 4] = 51  # 0.2
    loss = decoder.loss(torch.randn(1, 2, 7), {"image": seen})
    close(loss, torch.tensor([[256 * 0.25, 255 * 0.25 + 0.09]]))


def test_image_autoencoder_overfits_one_image():
    torch.manual_seed(0)
    encoder, decoder = ImageEncoder(SHAPES, KEYS, 2), ImageDecoder(32, SHAPES, KEYS, 2)
    seen = {key: value // 128 * 255 for key, value in random_images(1, 2).items()}
    seen["left"][:, :, 16:], seen["right"][:, 1] = 0, 255
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.01)
    losses = []
    for _ in range(30):
        loss = decoder.loss(encoder(seen, 2), seen).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], (losses[0], losses[-1])
    assert all(p.grad is not None for p in [*encoder.parameters(), *decoder.parameters()])
