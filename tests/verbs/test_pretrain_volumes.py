"""`frepa pretrain --dims 3` on volumes of several formats, with a tiny encoder, and its wrong inputs."""

from __future__ import annotations

import inspect
import json

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
import yaml

import frepa
from frepa.errors import InputError
from frepa.pretraining.defaults import resolved

TINY = {"encoder": "vit3d_tiny?image_size=32", "image_size": 32, "spectrum_patch": 4, "image_patch": 8, "max_steps": 2,
        "num_workers": 0, "quiet": True, "val_images": 1}  # fmt: skip


def _volume(seed: int, size: tuple[int, int, int]) -> np.ndarray:
    values = np.random.default_rng(seed).normal(300, 20, size)
    values[4:-4, 4:-4, 4:-4] += 400
    return values.astype(np.int16)


def write_nifti(path, seed: int, size: tuple[int, int, int] = (40, 36, 34), spacing=(1.0, 1.0, 1.0)) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    nibabel.save(nibabel.Nifti1Image(_volume(seed, size), affine), path)


@pytest.fixture
def volumes(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    write_nifti(folder / "a.nii.gz", 0)
    write_nifti(folder / "small.nii", 1, size=(20, 36, 17))  # smaller than the crop
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(_volume(2, (33, 40, 35))), folder / "b.mhd")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(_volume(3, (33, 40, 35))), folder / "c.nrrd")
    np.savez(folder / "d.npz", train_images=np.stack([_volume(4, (28, 28, 28)), _volume(5, (28, 28, 28))]))
    return folder


def _rows(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_the_defaults_are_the_papers_for_either_number_of_axes():
    given = {name: p.default for name, p in inspect.signature(frepa.pretrain).parameters.items()}
    flat, deep = resolved(given), resolved(given | {"dims": 3})
    assert (flat["image_size"], flat["fit"], flat["encoder"], flat["image_patch"]) == (512, "resize", "vit_base", 32)
    assert (deep["image_size"], deep["fit"], deep["encoder"], deep["image_patch"]) == (128, "crop", "vit3d_base", 16)
    own = resolved(given | {"dims": 3, "image_size": 64, "fit": "resize"})
    assert (own["image_size"], own["fit"]) == (64, "resize")


def test_volumes_of_all_formats_train_and_the_run_says_how(volumes, tmp_path):
    run = frepa.pretrain(str(volumes), out=str(tmp_path / "run"), dims=3, **(TINY | {"max_steps": 3}))
    rows = _rows(run)
    assert len(rows) == 3
    assert np.isfinite([row["loss"] for row in rows]).all()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["dims"], config["fit"], config["batch_size"]) == (3, "crop", 2)  # resolved, not null
    assert (run / "skipped.csv").read_text().splitlines() == ["path,reason"]
    encoder = frepa.load_encoder(run)
    assert (encoder.dims, encoder.in_channels) == (3, 2)
    with torch.no_grad():
        assert encoder(torch.rand(1, 2, 32, 32, 40)).dense.shape == (1, encoder.channels, 2, 2, 3)


def test_a_store_trains_as_its_files_do(volumes, tmp_path):
    store = frepa.prepare(str(volumes), out=str(tmp_path / "store"), dims=3, num_workers=0, quiet=True)
    from_files = frepa.pretrain(str(volumes), out=str(tmp_path / "files"), dims=3, **TINY)
    from_store = frepa.pretrain(str(store), out=str(tmp_path / "stored"), dims=3, **TINY)
    assert _rows(from_files) == _rows(from_store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "vit_tiny"}, "2D one, and 3D images"),
        ({"dims": 2, "encoder": "swinunetr_tiny"}, "3D one, and 2D images"),
        ({"dims": 4}, "dims 4"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(volumes, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        frepa.pretrain(str(volumes), out=str(tmp_path / "run"), **({"dims": 3} | TINY | change))
    assert not (tmp_path / "run").exists()
