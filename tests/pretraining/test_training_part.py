"""What a run trains on: shares of modalities, what is held out, and that neither needs a table of the source."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import frepa
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.angiograms import angiogram
from frepa.images.sampling import SampleStream, sorted_by_code
from frepa.pretraining.held_out import held_out_indices
from frepa.pretraining.training_part import modality_weights, training_part

BOTH = {"ct": 1, "mr": 1}


class _Listed:
    """As much of a source as the sampling order looks at."""

    location = "somewhere"
    by_modality = None

    def __init__(self, modalities: tuple[str, ...], codes: np.ndarray | None, length: int) -> None:
        self.modalities, self.modality_codes, self.length = modalities, codes, length

    def __len__(self) -> int:
        return self.length


@pytest.fixture
def mixed() -> _Listed:
    codes = np.random.default_rng(0).choice(4, size=3000, p=[0.05, 0.6, 0.3, 0.05]).astype(np.int32)
    return _Listed(("", "ct", "mr", "us"), codes, 3000)


def test_without_weights_every_record_comes_once_and_held_out_ones_never(mixed) -> None:
    part = training_part(mixed, val_images=8, seed=3)
    assert part.samples == 2992
    epoch = part.stream.at(np.arange(part.samples))
    assert sorted([*epoch.tolist(), *part.held_out.tolist()]) == list(range(3000))


@pytest.mark.parametrize("mapped", [False, True])
def test_drawn_shares_are_the_weights_and_held_out_records_never_come(mixed, mapped) -> None:
    if mapped:
        mixed.by_modality = sorted_by_code(mixed.modality_codes, 4)
    part = training_part(mixed, val_images=20, seed=3, weights={"ct": 2, "us": 1, "unknown": 1})
    drawn = part.stream.at(np.arange(40_000))
    for block in mixed.modality_codes[drawn].reshape(40, 1000):
        assert np.bincount(block, minlength=4).tolist() == [250, 500, 0, 250]
    assert not set(drawn.tolist()) & set(part.held_out.tolist())
    assert not (mixed.modality_codes[part.held_out] == 2).any()  # held out from what is trained on
    eligible = set(np.flatnonzero(mixed.modality_codes != 2).tolist())
    assert set(drawn.tolist()) == eligible - set(part.held_out.tolist())
    assert part.samples == len(eligible) - 20
    rare = np.flatnonzero(mixed.modality_codes == 3)
    counts = np.bincount(drawn[mixed.modality_codes[drawn] == 3], minlength=3000)[np.setdiff1d(rare, part.held_out)]
    assert counts.max() - counts.min() <= 1  # each scan before any of them comes again
    again = training_part(mixed, val_images=20, seed=3, weights={"ct": 2, "us": 1, "unknown": 1}).stream
    assert np.array_equal(again.at(np.arange(31_500, 31_600)), drawn[31_500:31_600])  # any position, directly


def test_a_small_source_lends_what_is_held_out(mixed) -> None:
    part = training_part(mixed, val_images=300, seed=0, weights={"us": 1})
    assert set(part.held_out.tolist()) <= set(np.flatnonzero(mixed.modality_codes == 3).tolist())
    assert part.samples == (mixed.modality_codes == 3).sum()
    stream = SampleStream(3000, 0, groups=mixed.modality_codes, weights=[0, 0, 0, 1])
    assert np.array_equal(part.stream.at(np.arange(500)), stream.at(np.arange(500)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ct", "such as CT=2,MRI=1"),
        ("ct=two", "such as CT=2,MRI=1"),
        ("ct=-1", "0 or more"),
        ("ct=1,", "such as CT=2,MRI=1"),
        ("ct=inf", "0 or more"),
        ("ct=1,ct=2", "named twice"),
        ("mrr=1", "there is no modality 'mrr' in somewhere. Did you mean mr\\? It holds unknown, ct, mr, us"),
        ("oct3d=1", "there is no modality 'oct3d' in somewhere. Known: ct, mr, unknown, us"),
        ("ct=0", "not all 0"),
        ("ct=1,us=0.0001", "of us is less than one image in 1000"),
    ],
)
def test_wrong_weights_are_named(mixed, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        training_part(mixed, val_images=8, seed=0, weights=modality_weights(text))


def test_a_source_without_modalities_and_a_modality_without_images_are_explained(mixed) -> None:
    with pytest.raises(InputError, match=r"somewhere names no modality.*a column 'modality'"):
        training_part(_Listed((), None, 30), val_images=2, seed=0, weights={"ct": 1})  # type: ignore[arg-type]
    codes = np.array([0] * 20 + [1])
    scarce = _Listed(("ct", "mr"), codes, 21)
    seed = next(s for s in range(99) if 20 in held_out_indices(21, 2, s))
    with pytest.raises(InputError, match="weight for mr, which has no image to train on"):
        training_part(scarce, val_images=2, seed=seed, weights=BOTH)
    training_part(scarce, val_images=2, seed=seed, weights={"ct": 1, "mr": 0})  # what has no weight needs no image


def test_a_run_with_weights_resumes_exactly(tmp_path, capsys) -> None:
    """Through the command's function: the same weights of the encoder after a stop in between; images of the excluded
    modality are broken, and none is listed as skipped, so none was read."""
    options = {
        "encoder": "timm:test_convnext",
        "image_size": 32,
        "batch_size": 4,
        "method": {"name": "frepa", "spectrum_patch": 4, "image_patch": 8},
    }
    options |= {
        "num_workers": 0,
        "quiet": True,
        "val_images": 0,
        "modality_weights": "octa=3,us=1",
        "checkpoint_every": 2,
    }
    rows = ["path,modality"]
    for seed in range(12):
        image, _ = angiogram(40, seed)
        name, modality = f"{seed}.png", ("octa", "us", "ct")[seed % 3]
        Image.fromarray((image * 255).astype(np.uint8)).save(tmp_path / name)
        if modality == "ct":
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
        rows.append(f"{name},{modality}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    source = str(tmp_path / "list.csv")
    assert open_source(source).modalities == ("ct", "octa", "us")
    whole = frepa.pretrain(source, out=str(tmp_path / "whole"), max_steps=4, **options)
    assert "on 8 of 12 images, drawn by octa=3,us=1, 4 steps" in capsys.readouterr().err
    part = frepa.pretrain(source, out=str(tmp_path / "part"), max_steps=2, **options)
    part = frepa.pretrain(source, out=str(tmp_path / "part"), max_steps=4, resume=True, **options)
    assert (whole / "encoder.safetensors").read_bytes() == (part / "encoder.safetensors").read_bytes()
    assert not (whole / "skipped.csv").exists() or ".png" not in (whole / "skipped.csv").read_text()
    losses = [json.loads(line).get("loss") for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum(loss is not None for loss in losses) == 4
    with pytest.raises(InputError, match="other options"):
        frepa.pretrain(source, out=str(whole), max_steps=4, resume=True, **(options | {"modality_weights": "us=1"}))
