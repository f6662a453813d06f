"""What a look at an encoder tells, against NumPy, scikit-learn and encoders whose features are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from frepa.analysis.health import Health, spread
from frepa.analysis.recovery import BANDS, cross_bands, random_projection
from frepa.encoders.contract import Encoder, Features
from frepa.heads.ridge import blocks_of, rows_of


class Given(Encoder):
    """An encoder whose features are a function of the image."""

    def __init__(self, function, channels: int, dims: int = 2, stride: int = 4) -> None:
        super().__init__(
            name="given", dims=dims, image_channels=1, guide="none", channels=channels, embedding_channels=channels,
            stride=stride, size_multiple=stride, options={},
        )  # fmt: skip
        self.function = function
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def extract(self, x: Tensor) -> Features:
        dense = self.function(x[:, :1])
        return Features(dense, dense)


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_and_variance_are_those_of_the_singular_values() -> None:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5, 3, 1, 0.5, 0.1, 0]) + 7
    found = spread(rows)
    values = np.linalg.svd(rows.double().numpy() - rows.double().numpy().mean(0), compute_uv=False)
    share = values[values > 1e-9] / values.sum()
    assert found["rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert found["variance"] == pytest.approx(rows.double().numpy().var(0).mean(), rel=1e-9)
    even = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(1))
    assert spread(even)["rank"] == pytest.approx(6, abs=0.05)
    assert spread(even) == spread(even[::83])  # of many positions forty for each feature are enough
    assert spread(torch.ones(50, 6)) == {"rank": 1.0, "variance": 0.0}


def test_each_image_is_told_by_what_the_others_were_fitted_to() -> None:
    """Again by scikit-learn, image by image, and a plain complex transform."""
    shown = list(images(6, (16, 20)).split(1))
    project = random_projection(5, 4, seed=3)
    maps = [project(image) + image.mean() for image in shown]
    found = cross_bands(maps, shown, 4)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(20), indexing="ij"))
    shares: dict[str, list[float]] = {name: [] for name in BANDS}
    for penalty in (1e-4, 1e-2, 1.0, 100.0):
        error, energy = dict.fromkeys(BANDS, 0.0), dict.fromkeys(BANDS, 0.0)
        for number, image in enumerate(shown):
            others = [place for place in range(6) if place % 4 != number % 4]
            x = np.concatenate([rows_of(maps[place]).double().numpy() for place in others])
            y = np.concatenate([blocks_of(shown[place], 4).double().numpy() for place in others])
            model = Ridge(alpha=penalty * len(x)).fit((x - x.mean(0)) / x.std(0), y)
            told = model.predict((rows_of(maps[number]).double().numpy() - x.mean(0)) / x.std(0))
            off = np.zeros((16, 20))
            for block, (row, column) in zip(told - blocks_of(image, 4).double().numpy(), np.ndindex(4, 5)):
                off[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = block.reshape(4, 4)
            for name, (low, high) in BANDS.items():
                inside = (radius >= low) & (radius < high) & (radius > 0)
                error[name] += (np.abs(np.fft.fft2(off)) ** 2)[inside].sum()
                energy[name] += (np.abs(np.fft.fft2(image[0, 0].double().numpy())) ** 2)[inside].sum()
        for name in BANDS:
            shares[name].append(1 - error[name] / energy[name])
    assert found == pytest.approx({name: max(values) for name, values in shares.items()}, abs=1e-5)


@pytest.mark.parametrize(("dims", "shape"), [(2, (32, 32)), (3, (16, 16, 16))])
def test_bands_are_told_against_a_random_projection_of_the_same_size(dims: int, shape: tuple[int, ...]) -> None:
    health = Health(images(8, shape))
    chance = health(Given(random_projection(6, 4), 6, dims).eval())
    assert [chance[name] for name in BANDS] == pytest.approx([0, 0, 0], abs=1e-9)  # it is its own null
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    means = health(Given(lambda x: pool(x, 4), 1, dims).eval())
    assert means["low"] > 0.2
    assert means["high"] < 0.1
    assert health(Given(random_projection(4**dims, 4, seed=1), 4**dims, dims).eval())["rank"] > 4 * means["rank"]


def test_any_size_is_taken_and_a_fine_map_is_looked_at_in_its_middle(monkeypatch) -> None:
    own = Given(lambda x: F.avg_pool2d(x, 4), 1).eval()
    odd, whole = images(4, (37, 30)), images(4, (37, 30))[..., :36, :28]
    assert Health(odd)(own) == pytest.approx(Health(whole)(own))
    tiny = Health(images(4, (3, 9)))(own)
    assert {"rank", "variance", "high"} <= set(tiny)
    monkeypatch.setattr("frepa.analysis.health._MOST_POSITIONS", 16)
    middle = Health(images(4, (64, 64))[..., 24:40, 24:40])(own)
    assert Health(images(4, (64, 64)))(own) == pytest.approx(middle)


def test_what_one_image_or_none_can_tell() -> None:
    own = Given(lambda x: F.avg_pool2d(x, 4), 1).eval()
    assert set(Health(images(1, (16, 16)))(own)) == {"rank", "variance"} == set(Health(images(1, (16, 16))).names)
    assert Health(images(0, (16, 16))).names == ()
    assert Health(images(0, (16, 16)))(own) == {}


def test_a_look_leaves_the_encoder_and_the_generator_as_they_are() -> None:
    from frepa.encoders.registry import build_encoder

    encoder = build_encoder("timm:test_convnext", dims=2).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    health = Health(images(4, (64, 64)))
    assert health(encoder) == health(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())
