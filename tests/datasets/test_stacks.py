"""Sets of one patient or one stack, divided by slices or by blocks of neighbouring slices."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile

import tiny_encoders  # noqa: F401 (registers them)
from frepa.datasets.opening import open_annotated
from frepa.datasets.reading import read_case
from frepa.datasets.stacks import BLOCKS, Dividing, VolumeBlocks
from frepa.downstream.classification.data import open_data
from frepa.downstream.segmentation.data import check_sets, open_sets
from frepa.errors import InputError
from frepa.images.intensity import to_unit
from frepa.images.orientation import reorient
from frepa.verbs.classify import classify
from frepa.verbs.segment import segment

SLICES = 30


def stack(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sections (30, 16, 20), each of its own brightness, and what is marked in each."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SLICES, 16, 20), np.uint8)
    mask[:, 4:10, 5:12] = 1
    mask[np.arange(SLICES), 0, np.arange(SLICES) % 20] = 1  # no two alike
    image = 40 + 3 * np.arange(SLICES)[:, None, None] + 60 * mask + rng.normal(0, 4, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def written(root: Path, kind: str) -> str:
    """A manifest of one stack in files of a kind."""
    image, mask = stack()
    root.mkdir()
    if kind == "h5":
        with h5py.File(root / "x.h5", "w") as file:
            file["image"], file["label"] = image, mask
        row = "x.h5#image,x.h5#label"
    elif kind == "npz":
        np.savez(root / "x.npz", images=image, labels=mask)
        row = "x.npz#images,x.npz#labels"
    elif kind == "tif":
        tifffile.imwrite(root / "raw.tif", image, photometric="minisblack")
        tifffile.imwrite(root / "label.tif", mask, photometric="minisblack")
        row = "raw.tif,label.tif"
    else:  # axes of the two files differ: the mask is turned as its image is
        affine = np.diag([1.0, 1, 4, 1])
        turned = np.diag([1.0, -1, -4, 1])
        turned[:3, 3] = [0, 15, 4 * (SLICES - 1)]
        nibabel.save(nibabel.Nifti1Image(image.transpose(2, 1, 0), affine), root / "raw.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0)[:, ::-1, ::-1], turned), root / "label.nii.gz")
        row = "raw.nii.gz,label.nii.gz"
    (root / "list.csv").write_text(f"image,mask\n{row}\n")
    return str(root / "list.csv")


@pytest.mark.parametrize("kind", ["h5", "npz", "tif", "nii"])
def test_a_slice_has_its_own_slice_of_the_mask(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / "data", kind)
    with pytest.raises(InputError, match="many slices"):
        open_sets([source], dims=2)
    sets = open_sets([source], dims=2, how=Dividing(by="slices"))
    data = check_sets(sets, dims=2)
    assert len(sets[0].cases) == SLICES
    _, mask = stack()
    for case in sets[0].cases:
        found = read_case(case, data.labels[sets[0].name], 2)
        # Turned the usual way up or not, it marks what is brighter, and it is the slice that the mark in row 0 names
        assert found.image[0][found.classes == 1].mean() > found.image[0][found.classes == 0].mean()
        own = [
            np.array_equal(found.classes, turned)
            for record in (case.record, SLICES - 1 - case.record)  # from feet to head or the other way round
            for turned in (mask[record], mask[record][::-1], mask[record][:, ::-1], mask[record][::-1, ::-1])
        ]
        assert any(own)


def test_blocks_keep_neighbours_together(tmp_path: Path) -> None:
    sets = open_sets([written(tmp_path / "data", "tif")], dims=2, seed=3, how=Dividing(by="blocks"))
    by_record = sorted(sets[0].cases, key=lambda case: case.record)
    groups = [case.group for case in by_record]
    assert len(set(groups)) == BLOCKS
    runs = 1 + sum(a != b for a, b in pairwise(groups))
    assert runs == BLOCKS  # each block is one run of neighbours
    assert all(groups.count(group) == SLICES // BLOCKS for group in groups)
    for group in set(groups):
        assert len({case.split for case in by_record if case.group == group}) == 1
    counts = [sum(case.split == part for case in by_record) for part in ("train", "val", "test")]
    assert counts == [21, 3, 6]  # 7:1:2
    alone = open_sets([written(tmp_path / "more", "tif")], dims=2, seed=3, how=Dividing(by="slices"))
    assert len({case.group for case in alone[0].cases}) == SLICES


def test_patients_of_many_images_are_cut_in_the_order_of_these(tmp_path: Path) -> None:
    rows = ["path,label,group"]
    for i in range(24):
        tifffile.imwrite(tmp_path / f"{i:02}.tif", np.full((9, 9), i, np.uint8))
        rows.append(f"{i:02}.tif,{'ab'[i % 2]},{'only one' if i < 20 else 'another'}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="2 patients"):
        open_data(str(tmp_path / "list.csv"), dims=2)
    data = open_data(str(tmp_path / "list.csv"), dims=2, how=Dividing(by="blocks"))
    assert len(set(data.groups)) == BLOCKS + 4
    assert data.groups[:20] == tuple(group for group in dict.fromkeys(data.groups[:20]) for _ in range(2))
    assert len(set(open_data(str(tmp_path / "list.csv"), dims=2, how=Dividing(by="slices")).groups)) == 24


def test_blocks_of_a_volume_are_pieces_of_it_on_its_grid(tmp_path: Path) -> None:
    source = written(tmp_path / "data", "nii")
    known = open_annotated(source, 3, "mask", canonical=False, how=Dividing("blocks"))
    blocks = known.source
    assert isinstance(blocks, VolumeBlocks)
    assert len(blocks) == BLOCKS
    whole = open_annotated(source, 3, "mask", canonical=False).source
    scan = reorient(whole.read(0))
    pieces = [blocks.read(i) for i in range(BLOCKS)]
    axis = int(np.argmax(np.array(scan.spacing)))
    assert np.array_equal(np.concatenate([piece.array for piece in pieces], axis + 1), scan.array)
    assert np.array_equal(np.concatenate([to_unit(piece) for piece in pieces], axis + 1), to_unit(scan))
    for i, piece in enumerate(pieces):
        assert piece.size == blocks.header(i).size
        assert np.array_equal(piece.affine, blocks.header(i).affine)
        start = np.zeros(4)
        start[axis], start[3] = sum(one.size[axis] for one in pieces[:i]), 1
        np.testing.assert_allclose(piece.affine @ [0, 0, 0, 1], scan.affine @ start)
    marked = np.concatenate([blocks.read_mask(i, "").array for i in range(BLOCKS)], axis + 1)
    assert scan.array[marked == 1].mean() > scan.array[marked == 0].mean() + 30
    assert marked.sum() == stack()[1].sum()
    with pytest.raises(InputError, match="Use --divide-by blocks"):
        open_annotated(source, 3, "mask", how=Dividing("slices"))


@pytest.mark.parametrize(("dims", "by"), [(2, "slices"), (3, "blocks")])
def test_a_head_trains_on_one_stack_and_the_report_says_so(tmp_path: Path, dims: int, by: str) -> None:
    source = written(tmp_path / "data", "h5" if dims == 2 else "nii")
    encoder = f"random:tiny{'3d' if dims == 3 else ''}_for_tests"
    run = segment(
        source, encoder=encoder, out=str(tmp_path / "run"), divide_by=by, head="linear", crop_size=16, quiet=True,
        num_workers=0,
    )  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    (only,) = results["sets"].values()
    assert only["cases"] == ({"train": 21, "val": 3, "test": 6} if dims == 2 else {"train": 7, "val": 1, "test": 2})
    assert only["split"] == f"random, 7:1:2 by {by[:-1]}, seed 0"
    said = "Scores say nothing about other patients"
    assert any(said in warning for warning in results["warnings"])
    assert said in (run / "report.html").read_text()
    with pytest.raises(InputError, match="expected patients, slices or blocks"):
        segment(source, encoder=encoder, out=str(tmp_path / "no"), divide_by="section")  # type: ignore[arg-type]


def test_parts_of_the_source_are_not_divided_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    parts = [*["train"] * 8, *["val"] * 4, *["test"] * 4]
    rows = [f"{i:02}.tif,{'ab'[i % 2]},{i // 2},{part},{i % 4 // 2}" for i, part in enumerate(parts)]
    for i in range(16):
        tifffile.imwrite(tmp_path / f"{i:02}.tif", np.full((9, 9), i, np.uint8))
    path = tmp_path / "list.csv"

    def listed(columns: str, lines: list[str]) -> str:
        path.write_text("\n".join([columns, *lines]) + "\n")
        return str(path)

    source = listed("path,label,group,split,fold", rows)
    encoder = "random:tiny_for_tests"
    for folds, own in ((None, "training, validation and test part"), (2, "2 folds")):
        with pytest.raises(InputError, match=f"has its own {own}, and they stay.*--split random"):
            classify(source, encoder=encoder, out=str(tmp_path / "no"), divide_by="slices", folds=folds, quiet=True)
    with pytest.raises(InputError, match="only tested on"):
        open_data(source, dims=2, how=Dividing(by="slices", complete=False))
    anew = open_data(source, dims=2, how=Dividing(by="slices", rule="random"))
    assert anew.shared
    assert len(set(anew.groups)) == 16
    for fold in open_data(source, dims=2, how=Dividing(by="slices", folds=4)).folds(4, 0):
        assert fold.shared
    # What is there stays; only the validation part is made, of slices of the patients of the training part.
    two = open_data(listed("path,label,group,split,fold", [row.replace(",val,", ",train,") for row in rows]), dims=2,
                    how=Dividing(by="slices"))  # fmt: skip
    assert not two.shared
    assert two.split_note.startswith("official; an eighth of the training slices")
    assert [group for group, part in zip(two.groups, two.parts) if part == "test"] == ["6", "6", "7", "7"]
    run = classify(str(path), encoder=encoder, out=str(tmp_path / "run"), divide_by="slices", quiet=True)
    assert not any("other patients" in text for text in json.loads((run / "results.json").read_text())["warnings"])


def test_stacks_with_parts_of_their_own_are_opened_and_stay_whole(tmp_path: Path) -> None:
    image, mask = stack()
    rows = ["image,mask,split"]
    for part in ("train", "val", "test"):
        tifffile.imwrite(tmp_path / f"{part}.tif", image, photometric="minisblack")
        tifffile.imwrite(tmp_path / f"{part}-label.tif", mask, photometric="minisblack")
        rows.append(f"{part}.tif,{part}-label.tif,{part}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    (found,) = open_sets([str(tmp_path / "list.csv")], dims=2, how=Dividing(by="slices"))
    assert found.split_note == "official"
    assert not found.shared
    assert [len(found.part(part)) for part in ("train", "val", "test")] == [SLICES] * 3
    assert len({case.group for case in found.cases}) == 3
    (tested,) = open_sets([str(tmp_path / "list.csv")], dims=2, how=Dividing(by="slices", complete=False))
    assert len({case.group for case in tested.cases}) == 3
    assert open_sets([str(tmp_path / "list.csv")], dims=2, how=Dividing(by="slices", rule="random"))[0].shared


def test_stacks_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    image, mask = stack()
    tifffile.imwrite(tmp_path / "raw.tif", image, photometric="minisblack")
    tifffile.imwrite(tmp_path / "label.tif", mask[1:], photometric="minisblack")
    (tmp_path / "list.csv").write_text("image,mask\nraw.tif,label.tif\n")
    with pytest.raises(InputError, match=r"raw\.tif is 30 x 16 x 20, .*label\.tif is 29 x"):
        open_sets([str(tmp_path / "list.csv")], dims=2, how=Dividing(by="slices"))
    moved = np.diag([1.0, 1, 4, 1])
    nibabel.save(nibabel.Nifti1Image(image.transpose(2, 1, 0), moved), tmp_path / "raw.nii")
    moved[2, 3] = 8.0
    nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0), moved), tmp_path / "label.nii")
    (tmp_path / "list.csv").write_text("image,mask\nraw.nii,label.nii\n")
    with pytest.raises(InputError, match="lies elsewhere in the patient"):
        open_sets([str(tmp_path / "list.csv")], dims=2, how=Dividing(by="blocks"))
