"""Histograms before and after corruptions: the distance by hand, what keeps a histogram and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from frepa import cli
from frepa.analysis.corruptions import CORRUPTIONS, corrupted
from frepa.analysis.histograms import HistogramOptions, Histograms, distance
from tiny_studies import Unshown, study, write_textures


def test_the_distance_is_that_of_sorted_values() -> None:
    before, after = torch.rand(1, 9, 8), torch.rand(1, 9, 8) * 0.5
    expected = np.abs(np.sort(before.numpy().ravel()) - np.sort(after.numpy().ravel())).mean()
    assert distance(before, after) == pytest.approx(expected, rel=1e-6)
    assert distance(before, before.flatten().flip(0).view_as(before)) == pytest.approx(0, abs=1e-7)
    assert distance(before, before + 0.25) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("side", [64, -24])
def test_frepas_corruptions_keep_the_histogram_and_zeros_do_not(tmp_path: Path, side: int) -> None:
    source = write_textures(tmp_path / "images", 6, side, fall=1.5)
    analysis = Histograms(HistogramOptions())
    analysis.check()
    found = analysis.analyse(study(source, dims=2 if side > 0 else 3), Unshown())
    apart = {name: own["wasserstein"] for name, own in found.scores.items()}
    assert apart["patches shuffled"] == pytest.approx(0, abs=1e-6)
    assert apart["patches of noise (Frepa)"] < 0.25 * apart["zero patches"]
    assert apart["both in the spectrum (Frepa)"] < 0.5 * apart["zero patches"]
    assert apart["high-pass (MFM)"] > apart["low-pass (MFM)"]
    edges = np.array(found.numbers["edges"])
    density = np.array(found.numbers["densities"]["original"])
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    assert density[edges[1:] < -1e-9].sum() == 0


def test_grey_images_stored_in_colour_are_corrupted_once() -> None:
    images = torch.rand(4, 3, 16, 16)
    images[:2] = images[:2, :1]
    for name in CORRUPTIONS:
        found = corrupted(name, images, 0, 0)
        assert torch.equal(found[:2], found[:2, :1].expand(-1, 3, -1, -1)), name
        assert not torch.equal(found[2, 0], found[2, 1])
        assert torch.allclose(found[1:3], corrupted(name, images[1:3], 0, 1), atol=1e-5), name


def test_without_an_encoder_and_with_a_wrong_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_textures(tmp_path / "images", 3, 24)
    words = ["analyze", "histograms", str(source), "--quiet", "--num-workers=0", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--kind.corruptions=zero patchs"]) == 2
    assert "Did you mean zero patches?" in capsys.readouterr().err
    assert cli.main([*words, "--kind.corruptions=zero patches,patches shuffled"]) == 0
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {
        "histograms.png", "histograms.svg", "images.png", "images.svg",
    }  # fmt: skip
