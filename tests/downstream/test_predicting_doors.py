"""`frepa predict` on every kind of source: the masks are those of the plain files, and lie where these lie."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from frepa.downstream.segmentation.model import Prediction, Segmenter
from frepa.errors import InputError
from frepa.verbs.predict import predict
from frepa.verbs.prepare import prepare
from tiny_runs import balls, read_rows, segmenting

COUNT = 4


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenting(tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenting(tmp_path_factory.mktemp("solid"), (8, 16, 16))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images as files, in a manifest, in arrays and in a stack; and in a layout with masks."""
    root = tmp_path_factory.mktemp("places")
    images = [balls((28, 32), seed)[0] for seed in range(COUNT)]
    for folder in ("plain", "set/images", "set/masks", "published/DRIVE/test/images", "published/DRIVE/test/mask"):
        (root / folder).mkdir(parents=True)
    with open(root / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([f"plain/{i}.png", "a"] for i in range(COUNT))])
    for i, image in enumerate(images):
        for folder in ("plain", "set/images"):
            Image.fromarray(image).save(root / folder / f"{i}.png")
        Image.fromarray(balls((28, 32), i)[1] * 255).save(root / "set/masks" / f"{i}.png")
        # As it is published, without the masks of its test images
        Image.fromarray(image).save(root / f"published/DRIVE/test/images/{i + 1:02}_test.tif")
        Image.fromarray(np.full_like(image, 255)).save(root / f"published/DRIVE/test/mask/{i + 1:02}_test_mask.gif")
    table = pa.table({"path": [f"plain/{i}.png" for i in range(COUNT)], "split": ["train", "test"] * 2})
    pq.write_table(table, root / "m.parquet")
    stack = np.stack(images)
    np.savez(root / "all.npz", images=stack, other=stack[::-1])
    np.savez(root / "breastmnist.npz", test_images=stack, test_labels=np.arange(COUNT)[:, None] % 2)
    tifffile.imwrite(root / "all.tif", stack, photometric="minisblack")
    with h5py.File(root / "all.h5", "w") as file:
        file["images"] = stack
    return root


def masks_of(out: Path) -> list[bytes]:
    """Masks in the order of the lines, as pixels."""
    return [np.asarray(Image.open(out / row["mask"])).tobytes() for row in read_rows(out / "predictions.csv")]


DOORS = [
    "plain", "plain/*.png", "*/?.png", "m.csv", "m.parquet", "set", "folders:set", "files:plain", "all.npz#images",
    "breastmnist.npz", "breastmnist:breastmnist.npz", "all.tif", "drive:published", "drive:published/DRIVE",
]  # fmt: skip


def test_images_through_every_door(flat, places, tmp_path) -> None:
    for name in ("named", "store"):
        prepare(str(places / "plain"), out=str(tmp_path / name), keep_names=name == "named", quiet=True, num_workers=0)
    out = predict(str(flat), [str(places / "plain")], out=str(tmp_path / "plain"), quiet=True)
    known = masks_of(out)
    assert len(set(known)) == COUNT
    for number, door in enumerate([*DOORS, "STORE", "NAMED", "all.h5#images"]):
        kind, colon, rest = door.rpartition(":")
        source = {"STORE": tmp_path / "store", "NAMED": tmp_path / "named"}.get(door, places / rest)
        found = predict(str(flat), [f"{kind}{colon}{source}"], out=str(tmp_path / str(number)), quiet=True)
        masks = masks_of(found)
        assert (sorted(masks) if door == "STORE" else masks) == (sorted(known) if door == "STORE" else known), door
    one = predict(str(flat), [str(places / "all.npz") + "#images[2]"], out=str(tmp_path / "one"), quiet=True)
    assert masks_of(one) == [known[2]]
    several = predict(
        str(flat), [str(places / "plain/1.png"), str(places / "breastmnist.npz")], out=str(tmp_path / "two"), quiet=True
    )
    assert masks_of(several) == [known[1], *known]


def test_volumes_through_every_door(solid, tmp_path, monkeypatch) -> None:
    """Each volume is answered with its own mask on its own grid, whatever it was found by."""
    monkeypatch.setattr(Segmenter, "predict", threshold)
    spacings = [(0.7, 1.3, 5.0), (2.0, 0.4, 0.9)]
    known = {}
    for folder in ("plain", "msd/Task04_Hippocampus/imagesTs", "deep/er"):
        (tmp_path / folder).mkdir(parents=True)
    for i, spacing in enumerate(spacings):
        values = (100 * (np.random.default_rng(i).random((6 + i, 9, 11)) < 0.3)).astype(np.int16)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(spacing)
        image.SetDirection([0.8, -0.6, 0, 0, 0, -1, 0.6, 0.8, 0])
        known[spacing] = values > 50
        for place in (f"plain/{i}.nii.gz", f"msd/Task04_Hippocampus/imagesTs/hippocampus_00{i}.nii.gz",
                      f"deep/er/{i}.mha"):  # fmt: skip
            sitk.WriteImage(image, str(tmp_path / place))
    (tmp_path / "m.csv").write_text("path,group\ndeep/er/0.mha,a\nplain/1.nii.gz,b\n")
    (tmp_path / "msd/Task04_Hippocampus/dataset.json").write_text("{}")
    doors = ["plain", "deep", "plain/*.nii.gz", "**/er/*", "m.csv", "msd:msd", "msd:msd/Task04_Hippocampus"]
    for number, door in enumerate(doors):
        kind, colon, rest = door.rpartition(":")
        out = predict(str(solid), [f"{kind}{colon}{tmp_path / rest}"], out=str(tmp_path / f"out{number}"), quiet=True)
        masks = [sitk.ReadImage(str(out / row["mask"])) for row in read_rows(out / "predictions.csv")]
        found = {tuple(np.round(mask.GetSpacing(), 4)): mask for mask in masks}
        assert found.keys() == known.keys(), door
        for spacing, mask in found.items():
            np.testing.assert_allclose(mask.GetDirection(), [0.8, -0.6, 0, 0, 0, -1, 0.6, 0.8, 0], atol=1e-5)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), known[spacing])


def threshold(self: Segmenter, image: np.ndarray) -> Prediction:
    found = (image[0] > 0.5).astype(np.uint8)
    return Prediction(found, np.stack([1.0 - found, found]).astype(np.float32))


@pytest.mark.parametrize("names", [True, False])
def test_masks_of_a_store_of_volumes_lie_where_the_files_lie(solid, tmp_path, monkeypatch, names) -> None:
    """A store turns volumes to one orientation; the patient stays."""
    monkeypatch.setattr(Segmenter, "predict", threshold)
    values = (100 * (np.random.default_rng(5).random((6, 9, 11)) < 0.3)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 1.3, 5.0))
    image.SetOrigin((-31.5, 12.25, 800.0))
    image.SetDirection([0.8, -0.6, 0, 0, 0, -1, 0.6, 0.8, 0])
    (tmp_path / "files").mkdir()
    sitk.WriteImage(image, str(tmp_path / "files/scan.nii.gz"))
    how = {"dims": 3, "keep_names": names, "quiet": True, "num_workers": 0}
    store = prepare(str(tmp_path / "files"), out=str(tmp_path / "store"), **how)
    out = predict(str(solid), [str(store)], out=str(tmp_path / "out"), quiet=True)
    (row,) = read_rows(out / "predictions.csv")
    assert ("scan" in row["mask"]) == names
    mask = sitk.ReadImage(str(out / row["mask"]))
    back = sitk.GetArrayFromImage(sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(back, values > 50)


def test_what_no_head_can_be_put_on_is_said(flat, solid, places, tmp_path) -> None:
    for run, source, words in (
        (flat, "all.npz#nothing", "nothing"),
        (flat, "plain/*.jpg", "jpg"),
        (solid, "all.tif#page=1", "holds 2D images, and the head was trained on volumes"),
    ):
        with pytest.raises(InputError, match=words):
            predict(str(run), [str(places / source)], out=str(tmp_path / "out"), quiet=True)
        assert not (tmp_path / "out").exists()
