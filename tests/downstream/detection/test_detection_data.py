"""Boxes from every layout, placed in the canonical image, and what is wrong with a set before anything is trained."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from box_sets import COLUMNS, SPHERES, by_name, marked, picture, pictures, table, voc, volume
from frepa.datasets.opening import open_source
from frepa.downstream.detection.data import check, check_classes, open_boxes
from frepa.errors import InputError
from frepa.images import boxes
from frepa.images.store.packing import pack_source


def test_a_table_of_pixels(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    lines = [f"{name},4,3,9,8,cell,g{i // 2}" for i, name in enumerate(files[:4])]
    text = table(
        tmp_path, f"{COLUMNS},label,group", *lines, "0.png,10.5,1,12,2,dot,g0", "4.png,,,,,,g2", "5.png,0,0,1,1,dot,g2"
    )
    data = check(open_boxes(text, dims=2))
    assert data.classes == ("cell", "dot")
    assert by_name(data)["0.png"] == [("cell", 3, 4, 8, 9), ("dot", 1, 10.5, 2, 12)]
    assert by_name(data)["4.png"] == []  # an image without findings stays
    assert data.targets.tolist() == [[1, 1], [1, 0], [1, 0], [1, 0], [0, 0], [0, 1]]
    assert data.shapes == ((20, 30),) * 6
    for fold in (data, *data.folds(3, 0)):
        parts = {group: {fold.parts[row] for row in range(6) if fold.groups[row] == group} for group in fold.groups}
        assert all(len(each) == 1 for each in parts.values())
    image = data.read(0)
    assert image.image.shape == (1, 20, 30)
    assert image.image.dtype == np.float32
    y, x, y_end, x_end = image.boxes.corners[0].astype(int)
    expected = np.zeros((20, 30))
    expected[y:y_end, x:x_end] = 1
    np.testing.assert_array_equal(image.image[0], expected)


def test_rows_stay_together_when_some_are_left_out(tmp_path: Path) -> None:
    files = pictures(tmp_path, 8)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:20])
    text = table(tmp_path, COLUMNS, *(f"{name},{i},0,{i + 1},5" for i, name in enumerate(files)), "absent.png,1,1,2,2")
    data = check(open_boxes(text, dims=2))
    assert sorted(item.path for item in data.left_out) == ["3.png", "absent.png"]
    assert len(data.records) == len(data.boxes) == len(data.shapes) == len(data.findings) == len(data.parts) == 7
    for row in range(7):
        assert data.boxes[row].corners[0, 1] == int(data.name(row)[0])
        np.testing.assert_array_equal(data.read(row).boxes.corners, data.boxes[row].corners)


def test_ignored_findings_are_of_no_class(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [f"{i}.png,1,1,5,5,{'yes' if i == 2 else ''}" for i in range(6)]
    data = check(open_boxes(table(tmp_path, f"{COLUMNS},ignored", *rows), dims=2))
    assert data.boxes[2].classes.tolist() == [boxes.IGNORED]
    assert data.targets[:, 0].tolist() == [1, 1, 0, 1, 1, 1]


def test_odd_boxes_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [f"{i}.png,1,1,5,5" for i in range(6)]
    odd = ["0.png,1,1,5,5", "1.png,2,2,2,9", "2.png,-3,1,9,99", "3.png,20,10,30.0004,20"]
    data = check(open_boxes(table(tmp_path, COLUMNS, *rows, *odd), dims=2))
    assert by_name(data)["0.png"] == by_name(data)["1.png"] == [("finding", 1, 1, 5, 5)]
    assert ("finding", 1, 0, 20, 9) in by_name(data)["2.png"]
    assert [sentence.split(",")[0] for sentence in data.warnings] == [
        "1 boxes have no area and are dropped",
        "1 boxes are there twice and are kept once",
        "1 boxes reach out of their image and are clipped",
    ]


ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)
]


def test_boxes_follow_volumes_of_any_orientation(tmp_path: Path) -> None:
    """The same finding in files with the axes in all 48 ways is one box in the canonical image."""
    base = np.zeros((12, 9, 7), np.float32)  # x to the right, y to the front, z up
    base[2:6, 3:5, 1:4] = 1.0
    affine = np.diag([0.75, 0.5, 2.0, 1.0])
    affine[:3, 3] = -10.5, 3.25, 40
    rows = []
    for number, codes in enumerate(ORIENTATIONS):
        change = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(codes))
        )
        turned = nibabel.orientations.apply_orientation(base, change)
        other = affine @ nibabel.orientations.inv_ornt_aff(change, base.shape)
        volume(tmp_path / f"{number}.nii.gz", other, np.ascontiguousarray(turned))
        inside = np.argwhere(turned > 0)
        rows.append(",".join([f"{number}.nii.gz", *map(str, inside.min(0)), *map(str, inside.max(0) + 1)]))
    data = check(open_boxes(table(tmp_path, "file,i_min,j_min,k_min,i_max,j_max,k_max", *rows), dims=3))
    assert len(data.records) == 48
    # slices from the feet up, rows from front to back, columns from right to left
    expected = [1.0, 9 - 5, 12 - 6, 4, 9 - 3, 12 - 2]
    for row in range(48):
        found = data.read(row)
        assert found.boxes.corners.tolist() == [expected]
        assert found.affine is not None
        assert found.native.affine is not None
        inside = np.argwhere(found.image[0] > 0.5)
        assert [*inside.min(0), *(inside.max(0) + 1)] == expected
        own = [float(cell) for cell in rows[row].split(",")[1:]]
        back = boxes.turned(found.boxes.corners, found.affine, found.native.affine)
        assert back.tolist() == [[*own[2::-1], *own[:2:-1]]]


def test_spheres_in_millimetres(tmp_path: Path) -> None:
    affine = np.diag([-0.5, -0.5, 2.0, 1.0])  # as CT usually lies in NIfTI files made from DICOM
    affine[:3, 3] = 90, 70, -300
    for i in range(4):
        volume(tmp_path / f"{i}.nii", affine, np.zeros((40, 30, 10), np.int16))
    # centre of voxel (i, j, k) = (20, 10, 4), written in LPS
    x, y, z = (affine @ [20, 10, 4, 1])[:3] * [-1, -1, 1]
    text = table(tmp_path, SPHERES, *(f"{i}.nii,{x},{y},{z},4" for i in range(3)), f"3.nii,{x},{y},{z},-1")
    data = check(open_boxes(text, dims=3))
    assert data.spheres
    # x runs to the patient's left in file and canonical image alike, as y to the back: nothing is flipped
    assert data.boxes[0].corners.tolist() == [[3.5, 6.5, 16.5, 5.5, 14.5, 24.5]]
    # ten millimetres where the diameter is unknown: reaches out of no side and is not clipped either
    assert data.boxes[3].corners.tolist() == [[2.0, 0.5, 10.5, 7.0, 20.5, 30.5]]


def test_the_box_of_a_sphere_is_not_clipped(tmp_path: Path) -> None:
    for i in range(3):
        volume(tmp_path / f"{i}.nii", np.diag([-1.0, -1, 1, 1]), np.zeros((8, 8, 8), np.int16))
    data = check(open_boxes(table(tmp_path, SPHERES, *(f"{i}.nii,0,3,3,6" for i in range(3))), dims=3))
    assert data.boxes[0].corners.tolist() == [[0.5, 0.5, -2.5, 6.5, 6.5, 3.5]]
    assert data.warnings == ()


def test_files_are_found_by_name_but_not_among_masks(tmp_path: Path) -> None:
    for folder in ("scans/image", "scans/nodule_mask"):
        pictures(tmp_path / folder)
    text = table(tmp_path, COLUMNS, *(f"{i}.png,1,1,5,5" for i in range(5)), "5,1,1,5,5")
    assert list(marked(text)) == [f"scans/image/{i}.png" for i in range(6)]
    picture(tmp_path / "other" / "3.png")
    with pytest.raises(InputError, match=r"2 files are called 3\.png"):
        open_boxes(text, dims=2)


def test_nodules_as_boxes_and_as_spheres(shared_data: Path) -> None:
    """Two tables of one set, made by different people from different facts."""
    folder = shared_data / "LIDC_nodules"
    data = check(open_boxes(str(folder / "boxes_voxel.csv"), dims=3))
    with open(folder / "boxes_voxel.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(data.records) == len(rows) == 788
    assert data.warnings == ()
    assert {part: data.sizes()[part] for part in ("train", "val", "test")} == {"train": 605, "val": 86, "test": 97}
    for row in (0, 211, 787):
        found = data.read(row)
        mask = nibabel.load(folder / "VOIs" / "nodule_mask" / Path(data.name(row)).name)
        inside = np.argwhere(np.asarray(mask.dataobj) > 0)
        assert found.native.affine is not None
        assert found.affine is not None
        native = boxes.turned(found.boxes.corners, found.affine, found.native.affine)[0]
        assert [*native[2::-1], *native[:2:-1]] == [*inside.min(0), *(inside.max(0) + 1)]
    text = str(folder / "metadata.csv")
    spheres = open_boxes(text, dims=3)
    with pytest.raises(InputError, match=r"LIDC-IDRI-0332_R_1.*outside the image"):
        check(spheres.chosen([row for row in range(788) if "0332_R_1" in spheres.name(row)]))
    kept = list(range(0, 788, 8))
    spheres = check(spheres.chosen(kept))
    apart = [
        np.abs(boxes.centres(data.boxes[row].corners) - boxes.centres(sphere.corners)).max()
        for row, sphere in zip(kept, spheres.boxes)
    ]
    assert np.median(apart) < 1.0  # voxels


# --- what is wrong


def in_table(*rows: str, shape: tuple[int, int] = (20, 30)) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        for i in range(4):
            picture(root / f"{i}.png", shape)
        return table(root, *rows)

    return make


def a_store(root: Path) -> str:
    pictures(root / "images")
    pack_source(open_source(root / "images"), root / "store", quiet=True)
    return str(root / "store")


def class_folders(root: Path) -> str:
    for c, i in itertools.product("ab", range(2)):
        picture(root / c / f"{i}.png")
    return str(root)


def voc_of_another_size(root: Path) -> str:
    for i in range(3):
        picture(root / "images" / f"{i}.png")
        voc(root / "Annotations" / f"{i}.xml", ("a", 1, 2, 9, 8), size=(30, 20))
    return str(root)


def voc_without_images(root: Path) -> str:
    picture(root / "images" / "other.png")
    for i in range(3):
        voc(root / "Annotations" / f"{i}.xml", ("a", 1, 2, 9, 8))
    return str(root)


def volumes(*rows: str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        for i in range(4):
            volume(root / f"{i}.nii", np.diag([1.0, 1, 1, 1]), np.zeros((8, 8, 8), np.int16))
            np.save(root / f"{i}.npy", np.zeros((8, 8, 8), np.int16))
        return table(root, *rows)

    return make


BOX3D = "path,x_min,y_min,z_min,x_max,y_max,z_max"
WRONG = {
    "nothing there": (lambda root: str(root / "none"), 2, r"does not exist"),
    "nothing marked": (lambda root: str(picture(root / "1.png").parent), 2, r"has no boxes.* nothing else is known"),
    "classes": (class_folders, 2, "has classes of .* frepa classify learns from these"),
    "a store": (a_store, 2, "has no boxes"),
    "no column of files": (in_table("x_min,y_min,x_max,y_max", "1,1,2,2"), 2, "no column that names the image"),
    "no columns of boxes": (
        in_table("path,x,y", "0.png,1,1"),
        2,
        "has no boxes.* a table with a row per box .path, x_min",
    ),
    "no rows": (in_table(COLUMNS), 2, "has no rows"),
    "no box": (in_table(COLUMNS, "0.png,,,,"), 2, "1 images and no box in any"),
    "half a box": (
        in_table(COLUMNS, "0.png,1,1,5,5", "1.png,1,,5,5"),
        2,
        "line 3: found y_min '', x_min '1', y_max '5', x_max '5'",
    ),
    "no number": (in_table(COLUMNS, "0.png,1,nan,5,5"), 2, "line 2: found y_min 'nan', .* Expected a number in each"),
    "backwards": (in_table(COLUMNS, "0.png,5,1,1,5"), 2, "line 2: the box ends before it starts"),
    "no label": (in_table(f"{COLUMNS},label", "0.png,1,1,5,5,"), 2, "line 2: a box without label"),
    "no image": (in_table(COLUMNS, ",1,1,5,5"), 2, "line 2: the column 'path' is empty"),
    "two spellings": (in_table(COLUMNS, "0.png,1,1,5,5", "./0.png,1,1,5,5"), 2, "one image is named in two ways"),
    "two parts": (
        in_table(f"{COLUMNS},split", "0.png,1,1,5,5,train", "0.png,1,1,5,5,test"),
        2,
        "line 3: split is 'test', but 'train' in another row",
    ),
    "unknown part": (in_table(f"{COLUMNS},split", "0.png,1,1,5,5,trian"), 2, "split 'trian' is not known"),
    "half a split": (in_table(f"{COLUMNS},split", "0.png,1,1,5,5,train", "1.png,1,1,5,5,"), 2, "1 of 2 labelled"),
    "absent": (in_table(COLUMNS, "a.png,1,1,5,5", "b.png,1,1,5,5", "0.png,1,1,5,5"), 2, "2 of 3 images it names were"),
    "outside": (
        in_table(COLUMNS, *(f"{i}.png,{29 + i},0,40,5" for i in range(4))),
        2,
        r"1\.png: the box .* 0, 30, 5, 40 lies outside the image, which has 20 x 30.* 2 more images .*2\.png, 3\.png",
    ),
    "another size": (voc_of_another_size, 2, r"is 20 x 30 pixels .* drawn on 30 x 20"),
    "no images": (voc_without_images, 2, r"3 XML files have no image of the same name: 0\.xml"),
    "2D for 3D": (in_table(COLUMNS, "0.png,1,1,5,5"), 3, "holds 2D images, and the encoder takes volumes"),
    "3D for 2D": (volumes(BOX3D, "0.nii,1,1,1,5,5,5"), 2, "slices:ENCODER"),
    "images as volumes": (in_table(BOX3D, "0.png,1,1,1,5,5,5"), 3, "holds 2D images, and the encoder takes volumes"),
    "volumes as images": (volumes(COLUMNS, "0.nii,1,1,5,5"), 2, "holds many slices"),
    "voc for 3D": (voc_of_another_size, 3, "holds 2D images, and the encoder takes volumes"),
    "no place": (volumes(SPHERES, *(f"{i}.npy,1,1,1,5" for i in range(3))), 3, "does not say where it lies"),
    "no boxes known": (lambda root: f"drive:{root}", 2, "No image of drive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sets_are_explained(tmp_path: Path, case: str) -> None:
    make, dims, message = WRONG[case]
    with pytest.raises(InputError, match="(?s)" + message):
        check(open_boxes(make(tmp_path), dims=dims))


def test_a_class_absent_from_training_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [
        f"{i}.png,1,1,5,5,{c},{part}"
        for i, (c, part) in enumerate(zip("aaabab", ["train"] * 3 + ["val", "val", "test"]))
    ]
    data = check(open_boxes(table(tmp_path, f"{COLUMNS},label,split", *rows), dims=2))
    with pytest.raises(InputError, match="no image of the training part shows a finding of the class 'b'"):
        check_classes(data)
    rows = [
        f"{i}.png,1,1,5,5,{c},{part}"
        for i, (c, part) in enumerate(zip("ababaa", ["train"] * 3 + ["val", "val", "test"]))
    ]
    data = check(open_boxes(table(tmp_path, f"{COLUMNS},label,split", *rows), dims=2))
    assert check_classes(data) == ["No test image shows a finding of b: nothing can be said of it."]
