"""Where losses pull in the spectrum, by plain NumPy; grids of synthetic images; and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from frepa import cli
from frepa.analysis.focal import Focal, FocalOptions, lattice, pull
from frepa.analysis.recovery import RINGS
from frepa.pretraining.methods.terms import HFL_CUTOFFS
from tiny_studies import TINY, textures, write_textures


def by_ring(magnitude: np.ndarray) -> np.ndarray:
    """Sum over images and the half spectrum, as the loss of a real image is seen there."""
    shape = magnitude.shape[1:]
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    kept = np.zeros(shape, bool)
    kept[:, : shape[1] // 2 + 1] = True
    ring = np.floor(radius / 0.5 * RINGS).astype(int)
    inside = kept & (radius > 0) & (ring < RINGS)
    return np.array([magnitude[:, inside & (ring == number)].sum() for number in range(RINGS)])


def test_the_pull_of_each_loss_by_numpy() -> None:
    residual = textures((24, 24), 3, 0, fall=0.5) - 0.5
    analysis = Focal(FocalOptions(alpha=1.0))
    analysis.check()
    found = pull(analysis.alone, torch.from_numpy(residual)[:, None])
    spectrum = np.fft.fft2(residual.astype(float))
    size = np.abs(spectrum)
    distance = 24 * np.hypot(*np.meshgrid(np.fft.fftfreq(24), np.fft.fftfreq(24), indexing="ij"))
    summed = np.zeros_like(spectrum)
    for cutoff in HFL_CUTOFFS:
        transfer = 1 - np.exp(-(distance**2) / (cutoff * 24) ** 2)
        summed += transfer * np.fft.fft2(np.sign(np.fft.ifft2(transfer * spectrum).real))
    largest = size.max((1, 2), keepdims=True)
    off = np.sqrt((residual**2).mean((1, 2), keepdims=True))
    expected = {"RMSE": size / off, "HFL": np.abs(summed), "focal frequency loss": size**2 / largest}
    for name, gradient in expected.items():
        with np.errstate(invalid="ignore"):
            ratio = by_ring(gradient) / by_ring(size)
        assert np.allclose(found[name], ratio / np.nanmean(ratio), rtol=2e-3, equal_nan=True), name


def test_the_focal_loss_pulls_at_what_is_large_and_hfl_at_what_is_fine() -> None:
    analysis = Focal(FocalOptions())
    analysis.check()
    found = pull(analysis.alone, torch.from_numpy(textures((64, 64), 2, 0, fall=1.5) - 0.5)[:, None])
    known = {name: np.array(values)[~np.isnan(values)] for name, values in found.items()}
    assert known["focal frequency loss"][0] > 10 * known["focal frequency loss"][-1]
    assert known["HFL"][-1] > 10 * known["HFL"][0]


@pytest.mark.parametrize("shape", [(64, 64), (24, 24, 24)])
def test_a_grid_shows_in_the_lattice(shape: tuple[int, ...]) -> None:
    stride = 8 if len(shape) == 2 else 4
    images = torch.from_numpy(textures(shape, 24, 0, fall=0.0))[:, None]
    assert lattice(images, (stride,) * len(shape)) == pytest.approx(1, abs=0.15)
    grid = torch.zeros(shape)
    for axis in range(len(shape)):
        grid.index_fill_(axis, torch.arange(0, shape[axis], stride), 1.0)
    assert lattice(images + 0.2 * grid, (stride,) * len(shape)) > 5
    assert np.isnan(lattice(images, (32,) * len(shape)))
    assert np.isnan(lattice(images, (1,) * len(shape)))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_textures(tmp_path / "images", 12, 32)
    words = ["analyze", "focal", str(source), "--encoder", f"ours={TINY}", "--quiet", "--num-workers=0"]
    words += ["--out", str(tmp_path / "out")]
    assert cli.main([*words, "--kind.alpha=-1"]) == 2
    assert "--kind.alpha -1.0: expected a number of at least 0." in capsys.readouterr().err
    assert cli.main([*words, "--kind.steps=3", "--kind.shown=1"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    decoders = results["numbers"]["encoders"]["ours"]["decoders"]
    assert list(decoders) == ["RMSE", "RMSE + HFL", "RMSE + focal"]
    assert len({own["rmse"] for own in decoders.values()}) == 3
    assert results["figures"] == ["pull-1", "reconstructions-1"]
