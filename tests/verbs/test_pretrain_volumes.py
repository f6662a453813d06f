"""`frepa pretrain --dims 3` on volumes of several formats, with a tiny encoder, and its wrong inputs."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from PIL import Image
from torch.utils.checkpoint import checkpoint

import frepa
from frepa.corruption.sizes import image_side
from frepa.datasets.opening import open_source
from frepa.encoders import contract
from frepa.errors import InputError
from frepa.heads.decoder import ReconstructionDecoder
from frepa.pretraining.journal import Journal
from frepa.pretraining.methods.frepa import Frepa
from frepa.pretraining.options import Data, Execution, Optimisation, Settings, Watching, resolved, spacing_in_mm

SMALL = {"name": "frepa", "spectrum_patch": 4, "image_patch": 8}
TINY = {"encoder": "vit3d_tiny,image_size=32", "image_size": 32, "method": SMALL, "max_steps": 1,
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
    def config(**data) -> dict:
        parts = {"data": Data(**data), "optimisation": Optimisation(), "watching": Watching(), "execution": Execution()}
        return resolved(Settings("s", "o", "frepa", Frepa(), None, None, "frangi", "input", **parts)).config

    flat, deep = config(), config(dims=3)
    assert (flat["image_size"], flat["fit"], flat["encoder"]) == (512, "resize", "vit_base")
    assert (deep["image_size"], deep["fit"], deep["encoder"]) == (128, "crop", "vit3d_base")
    for options, side in ((flat, 32), (deep, 16)):
        shape = (options["image_size"],) * options["dims"]
        assert image_side(shape, options["method"]["image_patch"], options["fit"]) == side
    own = config(dims=3, image_size=64, fit="resize")
    assert (own["image_size"], own["fit"]) == (64, "resize")


@pytest.mark.parametrize(
    ("given", "meant"),
    [(None, None), (1, 1.0), ("0.8", 0.8), ("3,1,1", [3.0, 1.0, 1.0]), ([3, 1, 1], [3.0, 1.0, 1.0])],
)
def test_a_spacing_is_one_number_or_one_per_axis(given, meant):
    assert spacing_in_mm(given, 3) == meant


@pytest.mark.parametrize("given", ["", "thin", "1,2", [1, 2, 3, 4], 0, -1.0, "nan", [1, None, 1]])
def test_a_wrong_spacing_is_named(given):
    with pytest.raises(InputError, match=r"--spacing .*slices, rows, columns"):
        spacing_in_mm(given, 3)


def test_volumes_of_all_formats_train_and_the_run_says_how(volumes, tmp_path):
    options = TINY | {"max_steps": 2, "val_images": 0}
    run = frepa.pretrain(str(volumes), out=str(tmp_path / "run"), dims=3, **options)
    rows = _rows(run)
    assert len(rows) == 2
    assert np.isfinite([row["loss"] for row in rows]).all()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["dims"], config["fit"], config["batch_size"]) == (3, "crop", 2)  # resolved, not null
    assert (run / "skipped.csv").read_text().splitlines() == ["path,reason"]
    encoder = frepa.load_encoder(run)
    assert (encoder.dims, encoder.in_channels) == (3, 2)
    with torch.no_grad():
        assert encoder(torch.rand(1, 2, 32, 32, 40)).dense.shape == (1, encoder.channels, 2, 2, 3)


def test_a_store_trains_as_its_files_do_with_and_without_recomputing(volumes, tmp_path, monkeypatch):
    store = frepa.prepare(str(volumes), out=str(tmp_path / "store"), dims=3, num_workers=0, quiet=True)
    options = TINY | {"val_images": 0, "dims": 3}  # no pictures, which take most of the time
    from_files = frepa.pretrain(str(volumes), out=str(tmp_path / "files"), **options)
    again: list[object] = []
    monkeypatch.setattr(contract, "checkpoint", lambda *args, **how: again.append(args) or checkpoint(*args, **how))
    from_store = frepa.pretrain(str(store), out=str(tmp_path / "stored"), recompute=True, **options)
    assert len(again) == 2 * 4  # the blocks of the encoder: once to see what memory a step takes, once in the step
    assert _rows(from_files) == _rows(from_store)


def test_crops_for_a_viewer_lie_where_the_file_has_them(tmp_path):
    """Each voxel of the crop has the value that nibabel finds in the file at the same place of the patient."""
    values = _volume(6, (50, 20, 44))  # smaller than the crop along one axis
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, -1.0]])  # oblique, the third axis from head to feet
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (0.9, 1.1, 3.0), (-30, 12, 55)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    run = frepa.pretrain(str(tmp_path / "a.nii.gz"), out=str(tmp_path / "run"), dims=3, **TINY)
    folder = run / "volumes" / "frequency"
    crop = nibabel.load(folder / "original.nii.gz")
    assert crop.shape == (32, 32, 32)
    assert sorted(crop.header.get_zooms()) == pytest.approx([0.9, 1.1, 3.0], abs=1e-5)
    for name in ("corrupted", "reconstruction", "guide"):
        other = nibabel.load(folder / f"{name}.nii.gz")
        assert other.shape == crop.shape
        assert np.allclose(other.affine, crop.affine)
        assert not np.allclose(other.get_fdata(), crop.get_fdata())
    index = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij")).reshape(3, -1)
    points = nibabel.affines.apply_affine(np.linalg.inv(affine) @ crop.affine, index.T).T
    assert np.abs(points - np.rint(points)).max() < 1e-3
    points = np.rint(points).astype(int)
    inside = np.all((points >= 0) & (points < np.array(values.shape)[:, None]), axis=0)
    assert inside.sum() == 32 * 20 * 32
    found = values[tuple(points[:, inside])]
    low, high = np.percentile(values, (0.5, 99.5))
    shown = crop.get_fdata().ravel()
    assert np.allclose(np.clip((found - low) / (high - low), 0, 1), shown[inside], atol=1e-5)
    assert not shown[~inside].any()


def test_a_broken_off_run_ends_as_one_that_was_not(volumes, tmp_path, monkeypatch):
    """As pretraining/test_resume.py shows with SIGKILL, for images and for volumes."""
    options = TINY | {"max_steps": 3, "checkpoint_every": 2, "fit": "crop", "image_size": 16, "foreground": 0.5}
    options |= {"encoder": "vit3d_tiny,image_size=16,depth=1", "spacing": 1.5, "val_images": 0, "ema_decay": 0.5}
    where = str(volumes / "*.nii*")
    whole = frepa.pretrain(where, out=str(tmp_path / "whole"), dims=3, **options)
    step = Journal.step

    def broken(self, number, *args, **kwargs):
        if number == 3:
            raise KeyboardInterrupt
        step(self, number, *args, **kwargs)

    monkeypatch.setattr(Journal, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        frepa.pretrain(where, out=str(tmp_path / "run"), dims=3, **options)
    monkeypatch.undo()

    class Other(ReconstructionDecoder):
        """As another version has it."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.more = torch.nn.Parameter(torch.zeros(3))

    with monkeypatch.context() as patched:
        patched.setattr("frepa.pretraining.methods.frepa.ReconstructionDecoder", Other)
        with pytest.raises(InputError, match="state of step 2 does not fit this version"):
            frepa.pretrain(where, out=str(tmp_path / "run"), dims=3, resume=True, **options)
    started = options | {"encoder": None, "start_from": str(tmp_path / "run" / "checkpoints"), "max_steps": 1}
    frepa.pretrain(where, out=str(tmp_path / "begun"), dims=3, **started)
    run = frepa.pretrain(where, out=str(tmp_path / "run"), dims=3, resume=True, **options)
    for name in ("encoder.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_spacing_and_foreground_are_trained_on(volumes, tmp_path):
    where = str(volumes / "*.nii*")
    run = frepa.pretrain(where, out=str(tmp_path / "run"), dims=3, spacing="2,1,1", foreground=0.5, **TINY)
    assert np.isfinite([row["loss"] for row in _rows(run)]).all()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["spacing"], config["foreground"]) == ([2.0, 1.0, 1.0], 0.5)
    assert "32^3 voxels of 2 x 1 x 1 mm" in (run / "report.html").read_text()
    crop = nibabel.load(next(run.glob("volumes/*/original.nii.gz")))
    assert crop.header.get_zooms() == pytest.approx((1, 1, 2), rel=0.02)  # x, y, z
    assert json.loads((run / "encoder.json").read_text())["extra"]["spacing"] == [2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "vit_tiny"}, "2D one, and 3D images"),
        ({"dims": 2, "encoder": "swinunetr_tiny"}, "3D one, and 2D images"),
        ({"dims": 4}, "dims 4"),
        ({"foreground": 1.5}, "foreground 1.5"),
        ({"foreground": 0.5, "fit": "resize"}, "Add --fit crop"),
        ({"spacing": "1,1"}, "spacing 1,1"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(volumes, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        frepa.pretrain(str(volumes), out=str(tmp_path / "run"), **({"dims": 3} | TINY | change))
    assert not (tmp_path / "run").exists()


def test_wrong_sources_are_named(tmp_path):
    np.save(tmp_path / "unknown.npy", np.random.default_rng(0).random((40, 40, 40), np.float32))
    with pytest.raises(InputError, match=r"--spacing 1.0: none of the scans"):
        frepa.pretrain(str(tmp_path / "unknown.npy"), out=str(tmp_path / "run"), dims=3, spacing=1.0, **TINY)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(flat / "a.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40), np.int16), np.eye(4)), flat / "b.nii")
    with pytest.raises(InputError, match="flat"):
        frepa.pretrain(str(flat), out=str(tmp_path / "run"), dims=3, **TINY)
    (flat / "c.nii.gz").write_bytes(b"no NIfTI")
    cut = tmp_path / "cut"
    cut.mkdir()
    write_nifti(cut / "a.nii.gz", 0)
    (cut / "a.nii.gz").write_bytes((cut / "a.nii.gz").read_bytes()[:20000])
    with pytest.raises(InputError, match=r"None of the scans.*a\.nii\.gz"):
        frepa.pretrain(str(cut), out=str(tmp_path / "run"), dims=3, **TINY)
    assert not (tmp_path / "run").exists()


def test_series_over_time_and_thin_stacks_train_volume_by_volume(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    series = np.stack([_volume(seed, (36, 34, 40)) for seed in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), folder / "series.nii.gz")  # three records
    nibabel.save(
        nibabel.Nifti1Image(_volume(9, (50, 50, 11))[..., 4:7], np.diag([0.7, 0.7, 7, 1])), folder / "thin.nii"
    )
    assert len(open_source(folder, dims=3)) == 4
    run = frepa.pretrain(str(folder), out=str(tmp_path / "run"), dims=3, batch_size=4, **(TINY | {"val_images": 0}))
    assert np.isfinite([row["loss"] for row in _rows(run)]).all()
    assert (run / "skipped.csv").read_text().splitlines() == ["path,reason"]
