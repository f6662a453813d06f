"""Heads trained from a store are those trained from the files it was packed from, and the store names nobody."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

import tiny_encoders  # noqa: F401 (registers them)
from frepa.checks.run import check_source
from frepa.datasets.opening import annotations_of, open_source
from frepa.datasets.packing import stored_labels
from frepa.errors import InputError
from frepa.images.store.source import StoreSource
from frepa.verbs.classify import classify
from frepa.verbs.detect import detect
from frepa.verbs.prepare import prepare
from frepa.verbs.segment import segment

ENCODERS = {2: "random:tiny_for_tests", 3: "random:tiny3d_for_tests"}
QUICK: dict[str, Any] = {"quiet": True, "num_workers": 0, "seed": 1}
PARTS = ["train"] * 6 + ["val"] * 2 + ["test"] * 3
# Axes of the files by turns: as stored by most programs, flipped, and exchanged
EXCHANGED = np.array([[0, 1.0, 0, 5], [1, 0, 0, 2], [0, 0, -2, 9], [0, 0, 0, 1]])
AFFINES = (np.diag([1.0, 1, 2, 1]), np.diag([-1.0, 1, 2, 1]), EXCHANGED)


def write(path: Path, array: np.ndarray, number: int) -> str:
    """An image as PNG, or a volume as NIfTI with axes that differ from file to file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 2:
        Image.fromarray(array).save(path.with_name(path.name + ".png"))
        return f"{path.parent.name}/{path.name}.png"
    nibabel.save(nibabel.Nifti1Image(array, AFFINES[number % 3]), path.with_name(path.name + ".nii.gz"))
    return f"{path.parent.name}/{path.name}.nii.gz"


def read_rows(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def masked(root: Path, dims: int, *, split: bool) -> str:
    """Bright boxes of two kinds in noise, their masks and (in 2D) fields of view; two images of each patient."""
    rows = []
    for i, part in enumerate(PARTS):
        rng = np.random.default_rng(i)
        size = (20, 24) if dims == 2 else (10, 12, 8)
        mask = np.zeros(size, np.uint8)
        mask[2:8, 3 : 9 + i % 3] = 1
        mask[4:, 9:12] = 2
        image = (60 + 60 * mask + rng.normal(0, 9, size)).clip(0, 255).astype(np.uint8)
        row = {"image": write(root / "images" / f"DOE_JANE_{i:02}", image, i),
               "mask": write(root / "masks" / f"DOE_JANE_{i:02}", mask, i),
               "group": f"DOE {i // 2 if split is False else i}"}  # fmt: skip
        if dims == 2:
            inside = np.zeros(size, np.uint8)
            inside[1:-2, 1:-1] = 255
            row["fov"] = write(root / "fov" / f"{i:02}", inside, i)
        rows.append(row | ({"split": part} if split else {}))
    return table(root / "list.csv", rows)


def scores(run: Path, *keys: str) -> str:
    """What a run measured, as text, so that nan equals nan; a set goes by another name in a store."""
    results = json.loads((run / "results.json").read_text())
    if "sets" in results:
        (only,) = results["sets"].values()
        results |= {"test": only["test"], "cases": only["cases"]}
    return json.dumps({name: results[name] for name in ("test", "cases", *keys)}, sort_keys=True)


def assert_same(verb: Callable[..., Path], source: str, store: Path, dims: int, **options: Any) -> tuple[Path, Path]:
    one, other = (
        verb(text, encoder=ENCODERS[dims], out=str(store.parent / f"{name}{len(options)}"), **QUICK, **options)
        for text, name in ((source, "files"), (str(store), "stored"))
    )
    for name in ("metrics.jsonl",) if options.get("max_steps") else ():
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert scores(one) == scores(other)
    return one, other


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation(tmp_path: Path, dims: int) -> None:
    source = masked(tmp_path / "data", dims, split=True)
    store = prepare(source, out=str(tmp_path / "store"), dims=dims, **{"num_workers": 0, "quiet": True})
    inside = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert b"DOE" not in inside
    options = {"max_steps": 4, "val_every": 2, "crop_size": 16, "batch_size": 2}
    one, other = assert_same(segment, source, store, dims, **options)
    # Predictions are the same too, in the axes each lies in
    for found, stored in zip(*(sorted((run / "predictions").rglob("*.*")) for run in (one, other))):
        if dims == 2:
            assert found.read_bytes() == stored.read_bytes()
        else:
            a, b = (nibabel.as_closest_canonical(nibabel.load(path)) for path in (found, stored))
            assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
            assert np.allclose(a.affine, b.affine)


def test_random_parts_are_those_of_the_files_where_names_are_kept(tmp_path: Path) -> None:
    source = masked(tmp_path / "data", 2, split=False)
    store = prepare(source, out=str(tmp_path / "store"), keep_names=True, num_workers=0, quiet=True)
    assert_same(segment, source, store, 2, head="linear")
    folds = assert_same(segment, source, store, 2, head="linear", folds=3)
    cases = [read_rows(run / "cases.csv") for run in folds]
    assert [row["case"] for row in cases[0]] == [row["case"] for row in cases[1]]


def test_classification(tmp_path: Path) -> None:
    for i, part in enumerate(PARTS * 2):
        rng = np.random.default_rng(i)
        name = ("bright", "dark")[i % 2]
        level = (170, 90)[i % 2]
        write(
            tmp_path / "data" / part / name / f"DOE_{i:02}",
            rng.normal(level, 30, (16, 18)).clip(0, 255).astype(np.uint8),
            i,
        )
    source = str(tmp_path / "data")
    # The names of folders may be those of patients: they are classes only where that is said
    assert stored_labels(open_source(source), native=lambda axes: open_source(source)) is None
    store = prepare(source, out=str(tmp_path / "store"), label_folders=True, num_workers=0, quiet=True)
    one, other = assert_same(classify, source, store, 2, image_size=16)
    assert json.loads((other / "results.json").read_text())["classes"] == ["bright", "dark"]
    assert_same(classify, source, store, 2, image_size=16, head="mlp", max_steps=3, batch_size=4)
    assert scores(one, "confusion") == scores(other, "confusion")


def test_classification_of_volumes(tmp_path: Path) -> None:
    rows = []
    for i, part in enumerate(PARTS * 2):
        volume = np.random.default_rng(i).normal((170, 90)[i % 2], 30, (10, 12, 8)).clip(0, 255).astype(np.uint8)
        label = ("bright", "dark")[i % 2]
        rows.append({"path": write(tmp_path / "data" / f"DOE_{i:02}", volume, i), "label": label, "split": part})
    source = table(tmp_path / "list.csv", rows)
    store = prepare(source, out=str(tmp_path / "store"), dims=3, num_workers=0, quiet=True)
    assert b"DOE" not in b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    one, other = assert_same(classify, source, store, 3, image_size=12)
    assert scores(one, "confusion", "classes") == scores(other, "confusion", "classes")
    assert_same(classify, source, store, 3, image_size=12, head="mlp", max_steps=3, batch_size=4)
    # Parts of an npz file are those of its store
    arrays: dict[str, Any] = {}
    for part, count in (("train", 8), ("val", 2), ("test", 6)):
        levels = np.where(np.arange(count) % 2, 90, 170)[:, None, None, None]
        arrays[f"{part}_images"] = np.random.default_rng(count).normal(levels, 30, (count, 9, 9, 9)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    packed = prepare(str(tmp_path / "x.npz"), out=str(tmp_path / "packed"), dims=3, num_workers=0, quiet=True)
    assert_same(classify, str(tmp_path / "x.npz"), packed, 3)


def boxed(root: Path, dims: int) -> str:
    """A bright block in every image but the last, and its box in the axes of the file."""
    rows = []
    for i, part in enumerate(PARTS):
        rng = np.random.default_rng(i)
        size = (28, 32) if dims == 2 else (20, 16, 12)
        image = rng.normal(100, 8, size)
        corner = [int(rng.integers(0, n - 9)) for n in size]
        extent = [int(n) for n in rng.integers(5, 9, dims)]
        block = tuple(slice(a, a + n) for a, n in zip(corner, extent))
        image[block] += 90
        path = write(root / "images" / f"DOE_{i:02}", image.clip(0, 255).astype(np.uint8), i)
        # PNG: rows are y; NIfTI: the first axis is x
        names = ("y", "x") if dims == 2 else ("x", "y", "z")
        sides = {
            f"{axis}_{end}": value
            for axis, a, n in zip(names, corner, extent)
            for end, value in (("min", a), ("max", a + n))
        }
        rows.append({"path": path, "split": part, "label": "block", **sides})
    return table(root / "boxes.csv", rows)


@pytest.mark.parametrize("dims", [2, 3])
def test_detection(tmp_path: Path, dims: int) -> None:
    source = boxed(tmp_path / "data", dims)
    store = prepare(source, out=str(tmp_path / "store"), dims=dims, num_workers=0, quiet=True)
    options = {"max_steps": 6, "val_every": 3, "crop_size": 16, "batch_size": 2, "lr": 1e-2, "max_boxes": 5}
    one, other = assert_same(detect, source, store, dims, **options)
    assert scores(one, "thresholds") == scores(other, "thresholds")


def test_boxes_around_the_masks_of_a_store(tmp_path: Path) -> None:
    source = masked(tmp_path / "data", 3, split=True)
    store = prepare(source, out=str(tmp_path / "store"), dims=3, num_workers=0, quiet=True)
    assert_same(detect, source, store, 3, max_steps=2, val_every=2, crop_size=8, batch_size=2, max_boxes=5)


def test_a_store_of_a_store_keeps_what_the_first_kept(tmp_path: Path) -> None:
    source = masked(tmp_path / "data", 2, split=True)
    first = prepare(source, out=str(tmp_path / "first"), num_workers=0, quiet=True)
    second = StoreSource(prepare(str(first), out=str(tmp_path / "second"), num_workers=0, quiet=True))
    assert [finding for finding in check_source(StoreSource(first)).findings if finding.level == "error"] == []
    stores = StoreSource(first), second
    tables = [store.annotations for store in stores]
    for column in ("split", "group", "mask", "mask_fov"):
        one, other = (table[column].to_pylist() for table in tables if table is not None)
        assert one == other
    for i in range(len(second)):
        for target in ("", "fov"):
            masks = [store.read_mask(i, target) for store in stores]
            one, other = (mask.array for mask in masks if mask is not None)
            assert np.array_equal(one, other)


def test_slices_of_a_volume_have_its_masks_slices_and_stay_together(tmp_path: Path) -> None:
    source = masked(tmp_path / "data", 3, split=False)
    lines = [line.rpartition(",")[0] for line in Path(source).read_text().splitlines()]  # no patients are known
    Path(source).write_text("\n".join(lines) + "\n")
    whole = StoreSource(prepare(source, out=str(tmp_path / "whole"), dims=3, num_workers=0, quiet=True))
    store = StoreSource(prepare(source, out=str(tmp_path / "slices"), dims=2, num_workers=0, quiet=True))
    groups = store.annotations["group"].to_pylist() if store.annotations is not None else []
    assert len(set(groups)) == len(whole) == len(PARTS)
    sizes = [whole.header(i).size for i in range(len(whole))]
    assert len(groups) == sum(min(size) for size in sizes)  # along the axis of 2 mm, the one of 8
    for number, group in enumerate(dict.fromkeys(groups)):
        own = [i for i, name in enumerate(groups) if name == group]
        volume, mask = whole.read(number).array[0], whole.read_mask(number, "")
        found = [(store.read(i), store.read_mask(i, "")) for i in own]
        assert mask is not None
        marked = [
            np.concatenate([image.array[mask.array == k] for image, mask in found if mask is not None]) for k in (1, 2)
        ]
        for k in (1, 2):
            assert np.array_equal(np.sort(marked[k - 1]), np.sort(volume[mask.array[0] == k]))
    run = segment(str(store.location), encoder=ENCODERS[2], out=str(tmp_path / "run"), head="linear", **QUICK)
    (only,) = json.loads((run / "results.json").read_text())["sets"].values()
    assert sum(only["cases"].values()) == len(groups)
    assert only["cases"]["test"] == 2 * 8


def painted(root: Path, kind: str) -> tuple[str, str]:
    """Volumes of every orientation with boxes or spheres in a table, and a manifest of masks that show the same."""
    boxes_of, masks_of = [], []
    for i in range(6):
        rng = np.random.default_rng(i)
        size = (14, 18, 9)
        image = write(root / f"{i:02}", rng.integers(0, 255, size, np.uint8), i)
        mask, rows = np.zeros(size, np.uint8), []
        if i != 4:
            low = rng.integers(2, 5, 3)
            high = low + rng.integers(2, 5, 3)
            mask[tuple(slice(a, b) for a, b in zip(low, high))] = 1
            rows = [{f"{a}_{end}": v for end, corner in (("min", low), ("max", high)) for a, v in zip("xyz", corner)}]
        if kind == "spheres" and i != 4:
            affine = AFFINES[i % 3]
            x, y, z, _ = affine @ [6.0, 7.0, 4.0, 1.0]
            rows = [{"coordX": -x, "coordY": -y, "coordZ": z, "diameter_mm": 7.0}]
            grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
            places = grid @ affine[:3, :3].T + affine[:3, 3]
            mask = (np.linalg.norm(places - [x, y, z], axis=-1) < 3.5).astype(np.uint8)
        boxes_of += [{"path": image, **row} for row in rows or [{}]]
        masks_of.append({"image": image, "mask": write(root / f"mask{i:02}", mask, i)})
    return table(root.parent / "boxes.csv", boxes_of), table(root.parent / "masks.csv", masks_of)


@pytest.mark.parametrize("kind", ["boxes", "spheres"])
def test_slices_have_the_part_of_a_volumes_boxes_that_crosses_them(tmp_path: Path, kind: str) -> None:
    """The masks of the same slices, which are turned and cut elsewhere, say where the boxes have to be."""
    texts = painted(tmp_path / "set", kind)
    stores = [
        StoreSource(prepare(text, out=str(tmp_path / str(k)), num_workers=0, quiet=True))
        for k, text in enumerate(texts)
    ]
    boxed_, masked_ = (annotations_of(store) for store in stores)
    assert len(boxed_.source) == len(masked_.source) == 6 * 9
    found = 0
    for record, marked in enumerate(boxed_.findings):
        mask = masked_.source.read_mask(record, "")
        assert mask is not None
        assert marked is not None
        assert np.array_equal(boxed_.source.read(record).array, masked_.source.read(record).array)
        places = np.argwhere(mask.array[0])
        if kind == "boxes":
            assert len(marked.values) == bool(len(places))
        if len(places):
            found += 1
            expected = [*places.min(0), *(places.max(0) + 1)]
            # Voxels whose centres are in a sphere reach less far than the sphere does
            assert np.abs(marked.values[0] - expected).max() <= (0 if kind == "boxes" else 1.01)
    assert found >= 10
    with pytest.raises(InputError, match=r"its boxes have three axes.*slices:"):
        detect(texts[0], encoder=ENCODERS[2], out=str(tmp_path / "run"), **QUICK)


def test_boxes_that_do_not_tell_their_slice_are_said_to_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", np.zeros((6, 8, 5), np.uint8), 0)
    text = table(tmp_path / "boxes.csv", [{"path": "a.nii.gz", "x_min": 1, "y_min": 1, "x_max": 3, "y_max": 4}])
    prepare(text, out=str(tmp_path / "store"), num_workers=0, quiet=True)
    assert "Not kept: boxes on stacks (1), which do not say in which slice they are." in capsys.readouterr().err


def test_what_a_store_lacks_is_said(tmp_path: Path) -> None:
    source = masked(tmp_path / "data", 2, split=True)
    (tmp_path / "data/masks/DOE_JANE_03.png").write_bytes(b"\x89PNG and no more")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "data/masks/DOE_JANE_04.png")
    store = prepare(source, out=str(tmp_path / "store"), num_workers=0, quiet=True)
    assert [mask is not None for mask in StoreSource(store).annotations["mask"].to_pylist()].count(False) == 2
    listed = read_rows(f"{store}.skipped.csv")
    assert [(row["path"], row["reason"][:10]) for row in listed] == [
        ("images/DOE_JANE_03.png", "its mask: "), ("images/DOE_JANE_04.png", "its mask: "),
    ]  # fmt: skip
    assert listed[1]["reason"] == "its mask: another size than its image"
    with pytest.raises(InputError, match=r"has no classes, which frepa classify learns.*masks of 9"):
        classify(str(store), encoder=ENCODERS[2], out=str(tmp_path / "run"), **QUICK)
    plain = prepare(str(tmp_path / "data/images"), out=str(tmp_path / "plain"), num_workers=0, quiet=True)
    with pytest.raises(InputError, match="has no masks"):
        segment(str(plain), encoder=ENCODERS[2], out=str(tmp_path / "run"), **QUICK)
