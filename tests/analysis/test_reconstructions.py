"""What is told of corrupted images: the regression by scikit-learn, context against none, and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from frepa import cli
from frepa.analysis.corruptions import corrupted, masked
from frepa.analysis.reconstructions import ReconstructionOptions, Reconstructions
from frepa.analysis.recovery import fitted, told
from frepa.encoders.contract import Features
from frepa.heads.ridge import blocks_of, neighbourhood, rows_of, unblocked
from tiny_studies import BlockEncoder, Unshown, study, textures, write_textures


class Around(BlockEncoder):
    """Of every block the pixels of those around it too."""

    def __init__(self, stride: int, dims: int = 2) -> None:
        super().__init__(stride, dims)
        self.channels = self.embedding_channels = self.channels * 3**dims

    def extract(self, x: torch.Tensor) -> Features:
        found = neighbourhood(super().extract(x).dense, 3)
        return Features(found, found)


def test_the_decoder_is_scikit_learns_ridge_from_corrupted_to_clean() -> None:
    clean = torch.from_numpy(textures((16, 16), 48, 0))[:, None]
    broken = corrupted(masked("zero", 0.5), clean, 0, 0)
    batches = [torch.cat(pair, 1) for pair in zip(clean.split(12), broken.split(12))]
    blocks = BlockEncoder(4)

    def features(pair: torch.Tensor) -> torch.Tensor:
        return blocks(blocks.prepare_input(pair[:, 1:])).dense

    path, penalty = fitted(features, 4, batches, lambda pair: pair[:, :1])
    found = told(rows_of(features(batches[0])), path, path.at(penalty), (12, 1, 16, 16), 4)
    x, y = (np.concatenate([blocks_of(v, 4).double().numpy() for v in value.split(12)]) for value in (broken, clean))
    scale = x.std(0)
    model = Ridge(alpha=penalty * len(x)).fit((x - x.mean(0)) / scale, y)
    own = (blocks_of(broken[:12], 4).double().numpy() - x.mean(0)) / scale
    expected = unblocked(torch.from_numpy(model.predict(own)), (12, 1, 16, 16), 4)
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_context_tells_more_of_masked_images_than_the_block_alone(tmp_path: Path, dims: int) -> None:
    source = write_textures(tmp_path / "images", 40 if dims == 2 else 16, 32 if dims == 2 else -16, fall=1.5)
    analysis = Reconstructions(ReconstructionOptions(noise="zero", mask_ratio=0.4, cutoff=0.08))
    analysis.check()
    page = Unshown()
    # Patches of 8 (of 4 in 3D) are masked, and blocks of half of that told from those around
    stride = 4 if dims == 2 else 2
    found = analysis.analyse(study(source, Around(stride, dims), BlockEncoder(stride, dims)), page)
    masks = {name: own["rmse"]["mean"] for name, own in found.numbers["masked"].items()}
    assert masks["blocks 0"] < masks["blocks 1"] < masks["corrupted"]
    low = {name: own["rmse"]["mean"] for name, own in found.numbers["low-passed"].items()}
    assert max(low["blocks 0"], low["blocks 1"]) < low["corrupted"]
    assert set(page.shown) == {"masked-images", "masked-spectrum", "low-passed-images", "low-passed-spectrum"}


def test_by_a_trained_decoder_with_the_guide_of_the_clean_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_textures(tmp_path / "images", 12, 32)
    words = ["analyze", "reconstructions", str(source), "--encoder=random:tiny_for_tests", "--quiet", "--num-workers=0"]
    assert cli.main([*words, "--out", str(tmp_path / "a"), "--kind.steps=2", "--kind.shown=1"]) == 0
    given = ["--kind.steps=2", "--kind.shown=1", "--kind.guide=clean"]
    assert cli.main([*words, "--out", str(tmp_path / "b"), *given]) == 0
    first, second = (json.loads((tmp_path / n / "results.json").read_text())["numbers"] for n in "ab")
    name = next(iter(set(first["masked"]) - {"corrupted", "random projection"}))
    assert first["masked"]["corrupted"] == second["masked"]["corrupted"]
    assert first["masked"][name] != second["masked"][name]
    assert cli.main([*words, "--out", str(tmp_path / "c"), "--kind.noise=salt"]) == 2
    assert "--kind.noise salt: expected zero, gaussian or permute." in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "c"), "--kind.cutoff=0"]) == 2
