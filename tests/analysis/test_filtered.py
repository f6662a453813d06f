"""Heads on filtered images: the filters by NumPy, unfiltered scores as of the runs, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from frepa import cli
from frepa.analysis.filtered import filter_of
from tiny_runs import classifying, segmenting
from tiny_studies import textures

ENCODER = "random:tiny_for_tests,guide=none"


@pytest.mark.parametrize("shape", [(30, 24), (12, 16, 10)])
def test_filters_are_exponential_and_keep_the_mean(shape: tuple[int, ...]) -> None:
    image = textures(shape, 2, 0)
    axes = tuple(range(1, 1 + len(shape)))
    bins = [n * np.fft.fftfreq(n) for n in shape]
    square = sum(np.square(f) for f in np.meshgrid(*bins, indexing="ij"))
    kept = np.exp(-square / (0.1 * min(shape)) ** 2)
    low = np.fft.ifftn(np.fft.fftn(image, axes=axes) * kept, axes=axes).real
    assert np.allclose(filter_of("low-pass", 0.1)(image), low, atol=1e-5)
    high = filter_of("high-pass", 0.1)(image)
    mean = image.mean(axes, keepdims=True)
    assert np.allclose(high, image - low + mean, atol=1e-5)
    assert np.allclose(filter_of("high-pass", 0.1, keep_mean=False)(image), image - low, atol=1e-5)


def test_segmentation_by_a_run_and_by_a_probe(tmp_path: Path) -> None:
    run = segmenting(tmp_path)
    words = ["analyze", "filtered", str(tmp_path / "set"), "--encoder", f"run={run}", "--encoder", f"probe={ENCODER}",
             "--crop-size=32", "--kind.high=0.05", "--kind.low=0.02", "--quiet", "--num-workers=0",
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(words) == 0
    numbers = json.loads((tmp_path / "out/results.json").read_text())["numbers"]
    assert numbers["task"] == "segmentation"
    scored = json.loads((run / "results.json").read_text())["sets"]["set"]["test"]["dsc"]
    whole, high, low = numbers["encoders"]["run"]
    assert (whole["filter"], high["filter"], low["cutoff"]) == ("none", "high-pass", 0.02)
    assert whole["dsc"]["value"] == pytest.approx(scored["mean"], abs=1e-9)
    assert low["dsc"]["value"] < 0.7 < whole["dsc"]["value"]  # nothing but the mean is left
    assert len(numbers["encoders"]["probe"]) == 3


def test_classification_by_a_run_and_by_a_probe(tmp_path: Path) -> None:
    run = classifying(tmp_path, head="linear")
    words = ["analyze", "filtered", str(tmp_path / "set"), "--encoder", f"run={run}", "--encoder", f"probe={ENCODER}",
             "--kind.high=0.05,0.2", "--kind.low=0.02", "--quiet", "--num-workers=0", "--out", str(tmp_path / "out"),
             "--image-size=24"]  # fmt: skip
    assert cli.main(words) == 0
    numbers = json.loads((tmp_path / "out/results.json").read_text())["numbers"]
    scored = json.loads((run / "results.json").read_text())["test"]
    whole = numbers["encoders"]["run"][0]
    assert [own["cutoff"] for own in numbers["encoders"]["run"]] == [0, 0.05, 0.2, 0.02]
    assert whole["acc"]["value"] == pytest.approx(scored["acc"]["value"], abs=1e-6)
    assert whole["auc"]["value"] == pytest.approx(scored["auc"]["value"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kinds/set", "--encoder=masks/run"], "has no masks"),
        (["masks/set", "--encoder=kinds/run", "--kind.task=segmentation"], "and here one of frepa segment is needed"),
        (
            ["kinds/set", f"--encoder={ENCODER}", "--kind.high=0.2,0.1"],
            "--kind.high 0.2,0.1: expected numbers that rise",
        ),
        (["kinds/set", f"--encoder={ENCODER}", "--kind.low=2"], "--kind.low 2: expected numbers that fall"),
        (["kinds/set", f"--encoder={ENCODER}", "--kind.task=detection"], "--kind.task detection: expected"),
        (["masks/set/images", f"--encoder={ENCODER}"], "has no masks"),
    ],
)
def test_wrong_input_in_plain_words(
    words: list[str], message: str, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(sets)
    assert cli.main(["analyze", "filtered", *words, "--out=out", "--quiet", "--num-workers=0"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    segmenting(root / "masks")
    classifying(root / "kinds")
    return root
