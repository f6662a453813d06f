"""Images and masks inside files: pages, members, rows of members, and any of them in .gz, through one manifest."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from frepa.checks.run import check_source
from frepa.datasets.opening import open_source
from frepa.datasets.reading import read_case
from frepa.downstream.segmentation.data import check_sets, open_sets
from frepa.errors import InputError
from frepa.verbs.prepare import prepare


def pair(number: int, size: tuple[int, ...] = (16, 20)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, no two alike."""
    rng = np.random.default_rng(number)
    mask = np.zeros(size, np.uint8)
    mask[..., 3:9, 2 : 5 + number % 8] = 1
    return (60 + 90 * mask + rng.integers(0, 20, size)).astype(np.uint8), mask


def zipped(path: Path) -> str:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return f"{path.name}.gz"


def rows_2d(root: Path) -> list[str]:
    """One pair of each kind; row ``i`` of the manifest is ``pair(i)``."""
    pairs = [pair(i) for i in range(12)]
    Image.fromarray(np.stack([pairs[0][0], pairs[0][0], 255 - pairs[0][0]], -1)).save(root / "a.ppm")
    Image.fromarray(pairs[0][1] * 255).save(root / "am.pgm")
    for name, place in (("b.tif", 1), ("c.npy", 2)):
        for kind, array in zip(("", "m"), pairs[place]):
            path = root / f"{name[0]}{kind}{name[1:]}"
            tifffile.imwrite(path, array) if name == "b.tif" else np.save(path, array)
    np.savez(root / "d.npz", image=pairs[3][0], label=pairs[3][1])
    for name, place in (("x.h5", 4), ("y.h5", 5)):
        with h5py.File(root / name, "w") as file:
            file["image"], file["label"] = pairs[place]
    for name, kind in (("s.tif", 0), ("sm.tif", 1)):
        tifffile.imwrite(root / name, np.stack([p[kind] for p in pairs[6:9]]), photometric="minisblack")
    np.savez(root / "n.npz", images=[p[0] for p in pairs[9:]], labels=[p[1] for p in pairs[9:]])
    rows = [f"{zipped(root / one)},{zipped(root / other)}"
            for one, other in (("a.ppm", "am.pgm"), ("b.tif", "bm.tif"), ("c.npy", "cm.npy"))]  # fmt: skip
    rows += ["d.npz#image,d.npz#label", "x.h5#image,x.h5#label"]
    packed = zipped(root / "y.h5")
    rows += [f"{packed}#image,{packed}#label"]
    rows += [f"s.tif#page={k},sm.tif#page={k}" for k in range(3)]
    return rows + [f"n.npz#images[{k}],n.npz#labels[{k}]" for k in range(3)]


def check(root: Path, rows: list[str], dims: int, size: tuple[int, ...]) -> None:
    (root / "list.csv").write_text("image,mask\n" + "\n".join(rows) + "\n")
    sets = open_sets([str(root / "list.csv")], dims=dims)
    labels = check_sets(sets, dims=dims).labels[sets[0].name]
    assert sorted(case.record for case in sets[0].cases) == list(range(len(rows)))
    for case in sets[0].cases:
        assert np.array_equal(read_case(case, labels, dims).classes, pair(case.record, size)[1]), rows[case.record]


def test_masks_are_read_wherever_they_are(tmp_path: Path) -> None:
    check(tmp_path, rows_2d(tmp_path), 2, (16, 20))


def test_masks_of_volumes_are_read_wherever_they_are(tmp_path: Path) -> None:
    size = (5, 16, 20)
    for kind, array in zip(("v", "vm"), pair(0, size)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{kind}.nrrd"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["volumes/raw"], file["volumes/labels/cells"] = pair(1, size)
    for kind, array in zip(("w", "wm"), pair(2, size)):
        tifffile.imwrite(tmp_path / f"{kind}.tif", array, photometric="minisblack")
    rows = [
        f"{zipped(tmp_path / f'{name}')},{zipped(tmp_path / f'{name[0]}m{name[1:]}')}" for name in ("v.nrrd", "w.tif")
    ]
    rows.insert(1, "x.h5#volumes/raw,x.h5#volumes/labels/cells")
    check(tmp_path, rows, 3, size)


def test_a_mask_that_is_many_is_refused(tmp_path: Path) -> None:
    rows = rows_2d(tmp_path)
    for wrong, words in (
        ("n.npz#labels", r"holds 3 masks.*n\.npz#labels\[0\]"),
        ("sm.tif", r"holds 3 masks"),
        ("x.h5#labels", "has no dataset 'labels'"),
        ("n.npz#labels[7]", "no mask 7; it holds 3"),
    ):
        (tmp_path / "list.csv").write_text("image,mask\n" + "\n".join([*rows[:6], f"s.tif#page=0,{wrong}"]) + "\n")
        with pytest.raises(InputError, match=words):
            check_sets(open_sets([str(tmp_path / "list.csv")], dims=2), dims=2)


@pytest.mark.parametrize("dims", [2, 3])
def test_folders_of_files_with_image_and_label_are_read_by_every_verb(tmp_path: Path, dims: int) -> None:
    size = (16, 20) if dims == 2 else (5, 16, 20)
    for i, part in enumerate(("train", "train", "val", "test")):
        (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
        image, mask = pair(i, size)
        if i == 1:
            np.savez(tmp_path / "set" / part / f"{i}.npz", image=image, label=mask)
            continue
        with h5py.File(tmp_path / "set" / part / f"{i}.h5", "w") as file:
            file["image"], file["label"] = image, mask
    source = open_source(tmp_path / "set", dims=dims)
    assert len(source) == 4
    assert source.skipped == []
    (found,) = open_sets([str(tmp_path / "set")], dims=dims)
    labels = check_sets([found], dims=dims).labels[found.name]
    for case in found.cases:
        number = int(source.name(case.record).split("/")[1][0])
        image, mask = pair(number, size)
        assert np.array_equal(source.read(case.record).array[0], image)
        assert np.array_equal(read_case(case, labels, dims).classes, mask)
        assert case.split == ("train", "train", "val", "test")[number]
    report = check_source(open_source(tmp_path / "set", dims=dims, canonical=False))
    assert not [finding for finding in report.findings if finding.level == "error"]
    store = prepare(str(tmp_path / "set"), out=str(tmp_path / "store"), dims=dims, num_workers=0, quiet=True)
    (packed,) = open_sets([str(store)], dims=dims)
    assert [case.split for case in packed.cases] == [case.split for case in found.cases]
