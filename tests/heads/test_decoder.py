from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.ndimage import uniform_filter
from torch.utils.flop_counter import FlopCounterMode

from frepa.errors import InputError
from frepa.heads.decoder import ReconstructionDecoder, cosine_basis, over_positions
from frepa.heads.reading import to_depth


def as_if_trained(decoder: ReconstructionDecoder) -> ReconstructionDecoder:
    """With something in the layers that start from zero."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return decoder


@pytest.mark.parametrize(
    ("stride", "dims", "positions", "size"),
    [
        (1, 2, (9, 7), (9, 7)),
        (2, 2, (5, 4), (9, 7)),
        (8, 2, (4, 5), (31, 40)),
        (16, 2, (3, 2), (45, 17)),
        (32, 2, (1, 2), (20, 64)),
        (14, 2, (3, 2), (42, 27)),
        (6, 2, (3, 3), (18, 13)),
        (1, 3, (4, 5, 6), (4, 5, 6)),
        (16, 3, (1, 2, 1), (16, 30, 9)),
        ((1, 16, 16), 3, (5, 2, 1), (5, 32, 11)),
        ((2, 8, 4), 3, (2, 2, 3), (3, 15, 12)),
        ((1, 14, 14), 3, (3, 2, 2), (3, 20, 28)),
    ],
)
def test_output_has_the_size_asked_for(stride, dims: int, positions: tuple[int, ...], size: tuple[int, ...]) -> None:
    decoder = as_if_trained(ReconstructionDecoder(24, stride, 2, dims))
    dense = torch.randn(2, 24, *positions, requires_grad=True)
    output = decoder(dense, size)
    assert output.shape == (2, 2, *size)
    output.square().mean().backward()
    assert [key for key, value in decoder.named_parameters() if value.grad is None] == []
    assert dense.grad is not None
    assert dense.grad.abs().amax((0, 1)).min() > 0


def test_a_position_answers_for_its_own_pixels() -> None:
    """No axis is transposed or flipped on the way up: change one position, and the pixels it covers change most."""
    torch.manual_seed(0)
    decoder = as_if_trained(ReconstructionDecoder(8, (1, 4, 8), 1, 3)).eval()
    dense = torch.randn(1, 8, 5, 6, 7)
    changed = dense.clone()
    changed[0, :, 3, 1, 5] += 3
    with torch.no_grad():
        # Group norm spreads a little of any change everywhere; what remains is local.
        difference = (decoder(changed, (5, 24, 56)) - decoder(dense, (5, 24, 56))).abs()[0, 0]
    peak = [int(index) for index in torch.unravel_index(difference.argmax(), difference.shape)]
    # The pixels of position (3, 1, 5), or of a neighbour that the 3 x 3 convolutions reach.
    assert 2 <= peak[0] < 5
    assert 0 <= peak[1] < 12
    assert 32 <= peak[2] < 56


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_features_are_standardised_over_the_positions_of_each_image(shape: tuple[int, ...]) -> None:
    dense = np.random.default_rng(0).normal(5, 0.1, (2, 3, *shape))
    dense[1, 2] = 7  # constant over its image
    axes = tuple(range(2, dense.ndim))
    spread = dense.std(axes, keepdims=True)
    expected = (dense - dense.mean(axes, keepdims=True)) / np.where(spread > 0, np.sqrt(spread**2 + 1e-5), 1)
    np.testing.assert_allclose(over_positions(torch.from_numpy(dense)).numpy(), expected, atol=1e-9)


def test_an_image_is_reconstructed_the_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    decoder = as_if_trained(ReconstructionDecoder(24, 16, 1, 2))
    dense = torch.randn(3, 24, 4, 4)
    alone = torch.cat([decoder(one[None], (64, 64)) for one in dense])
    torch.testing.assert_close(decoder(dense, (64, 64)), alone, rtol=1e-4, atol=1e-4)


def test_no_checkerboard_at_the_start() -> None:
    """A map without structure must give an image without a grid, whatever the stage's weights."""
    torch.manual_seed(0)
    decoder = ReconstructionDecoder(32, 16, 1, 2).eval()
    with torch.no_grad():
        image = decoder(torch.randn(1, 32, 1, 1).expand(1, 32, 8, 8), (128, 128))[0, 0]
    inner = image[40:-40, 40:-40]
    assert inner.std() < 1e-5


def test_the_first_step_reaches_every_layer_that_starts_from_zero() -> None:
    """Two steps from the start the encoder is taught too."""
    decoder = ReconstructionDecoder(32, 16, 1, 2)
    dense, image = torch.randn(2, 32, 4, 4, requires_grad=True), torch.rand(2, 1, 64, 64)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-3)
    for _ in range(2):
        dense.grad = None
        optimizer.zero_grad()
        (decoder(dense, (64, 64)) - image).square().mean().backward()
        optimizer.step()
    assert dense.grad is not None
    assert dense.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(4, 4), (3, 4), (2, 4, 4)])
def test_cells_start_as_scipys_cosine_transform(shape: tuple[int, ...]) -> None:
    patterns = cosine_basis(shape).double().numpy()
    values = np.random.default_rng(0).random(shape)
    ours, theirs = np.sort(patterns @ values.ravel()), np.sort(dctn(values, norm="ortho").ravel())
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(patterns @ patterns.T, np.eye(len(patterns)), atol=1e-6)
    assert np.ptp(patterns[0]) < 1e-6


def test_a_map_that_knows_the_image_can_tell_it_all() -> None:
    """Where there are as many values as pixels, the linear map alone loses nothing."""
    torch.manual_seed(0)
    decoder = ReconstructionDecoder(64, 8, 1, 2)
    image = torch.rand(8, 1, 32, 32)
    dense = to_depth(image, (8, 8))
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(300):
        loss = (decoder(dense, (32, 32)) - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.sqrt() < 0.03, "white noise has a deviation of 0.29"


@pytest.mark.parametrize("shape", [(15, 12), (6, 7, 8)])
def test_a_map_of_every_pixel_is_read_with_what_lies_around(shape: tuple[int, ...]) -> None:
    """A blurred image cannot be told from its own pixel alone, and can from the neighbours, across cells too."""
    torch.manual_seed(0)
    dims = len(shape)
    decoder = ReconstructionDecoder(1, 1, 1, dims)
    images = torch.randn(16, 1, *shape)
    wanted = torch.from_numpy(uniform_filter(images.numpy(), (1, 1, *(3,) * dims), mode="nearest"))
    by_itself = (wanted * images).sum() / images.square().sum()
    alone = (wanted - by_itself * images).square().mean()
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(200):
        loss = (decoder(images, shape) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * alone
    moved = images.clone()
    place = tuple(n // 2 for n in shape)
    moved[(0, 0, *place)] += 5
    with torch.no_grad():
        change = (decoder(moved, shape) - decoder(images, shape)).abs()[0, 0]
    peak = torch.unravel_index(change.argmax(), change.shape)
    assert max(abs(int(at) - to) for at, to in zip(peak, place)) <= 1


def test_brightness_survives_the_norms() -> None:
    """Group norm could wash out how bright an image is: the head must be able to learn it."""
    torch.manual_seed(0)
    decoder = ReconstructionDecoder(16, 2, 1, 2)
    brightness = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1)
    dense = torch.randn(1, 16, 1, 1) * brightness + torch.randn(1, 16, 1, 1)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(80):
        loss = (decoder(dense.expand(5, 16, 2, 2), (4, 4)) - brightness).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.004, "five brightness levels have variance 0.1"


def test_it_is_light_beside_the_encoder() -> None:
    with torch.device("meta"):
        decoder = ReconstructionDecoder(768, 16, 3, 2)
        with FlopCounterMode(display=False) as counter:
            decoder(torch.empty(1, 768, 32, 32), (512, 512))
    # ViT-B/16 at 512 x 512: 1025 tokens through 12 blocks of 12 * 768^2 weights, and attention between all pairs.
    encoder_flops = 2 * 12 * (1025 * 12 * 768**2 + 2 * 1025**2 * 768)
    assert sum(p.numel() for p in decoder.parameters()) < 0.02 * 86.6e6
    assert counter.get_total_flops() < 0.05 * encoder_flops


@pytest.mark.parametrize("size", [(17, 16), (16,), (16, 16, 1)])
def test_more_than_the_map_covers_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"covers \(16, 16\)"):
        ReconstructionDecoder(8, 8, 1, 2)(torch.randn(1, 8, 2, 2), size)
