"""Every layout of a set with boxes gives the boxes that its files say."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from box_sets import by_name, picture, pictures, table, voc, volume
from frepa.datasets.stacks import Dividing
from frepa.downstream.detection.data import check, check_classes, open_boxes
from frepa.errors import InputError
from frepa.images.boxes import turned


def test_a_voc_folder_with_lists(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "JPEGImages" / f"{i}.jpg")
        voc(tmp_path / "Annotations" / f"{i}.xml", ("a", 1, 2, 9, 8), difficult=int(i == 1))
    (tmp_path / "Annotations" / "5.xml").unlink()
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part, names in {"train": "0\n1\n", "val": "2\n", "test": "3\n5\n", "trainval": "0\n1\n2\n"}.items():
        (lists / f"{part}.txt").write_text(names)
    data = check(open_boxes(str(tmp_path), dims=2))
    assert by_name(data) == {f"JPEGImages/{i}.jpg": [("a" if i != 1 else None, 2, 1, 8, 9)] for i in range(4)}
    assert data.parts == ("train", "train", "val", "test")
    assert data.unlabelled == 2  # 4 is in no list, 5 has no annotation


def test_voc_files_beside_images_in_parts(tmp_path: Path) -> None:
    for part, i in itertools.product(("train", "valid", "test"), range(2)):
        picture(tmp_path / part / f"{i}.png")
        voc(tmp_path / part / f"{i}.xml", ("a", 1, 2, 9, 8))
    data = open_boxes(str(tmp_path), dims=2)
    assert sorted(zip((data.name(row).split("/")[0] for row in range(6)), data.parts)) == [
        ("test", "test"), ("test", "test"), ("train", "train"), ("train", "train"), ("valid", "val"), ("valid", "val")
    ]  # fmt: skip


def test_blood_cells_as_a_folder_and_by_name(shared_data: Path) -> None:
    plain = check(open_boxes(str(shared_data / "BCCD"), dims=2))
    named = check(open_boxes(f"bccd:{shared_data / 'BCCD'}", dims=2))
    assert named.classes == ("RBC", "WBC", "Platelets")
    assert by_name(plain) == by_name(named)
    assert plain.warnings == (
        "2 boxes have no area and are dropped, in 2 images such as JPEGImages/BloodImage_00338.jpg.",
    )
    assert (plain.sizes(), named.sizes()) == ({"train": 179, "val": 26, "test": 87},) * 2
    for row in (0, 100):
        root = ElementTree.parse(shared_data / "BCCD" / "Annotations" / f"{Path(named.name(row)).stem}.xml").getroot()
        expected = sorted(
            (
                item.findtext("name"),
                *(float(item.findtext(f"bndbox/{side}") or "") for side in ("ymin", "xmin", "ymax", "xmax")),
            )
            for item in root.iter("object")
        )
        assert sorted(by_name(named)[named.name(row)]) == expected
    assert check_classes(plain) == []
    image = plain.read(0)
    assert image.image.shape == (3, 480, 640)
    assert image.affine is None


def test_luna16_with_findings_left_out(tmp_path: Path) -> None:
    import SimpleITK

    for number in range(4):
        scan = SimpleITK.GetImageFromArray(np.zeros((10, 20, 30), np.int16))
        scan.SetSpacing((0.5, 0.5, 2.0))
        scan.SetOrigin((-100.0, -50.0, -200.0))
        folder = tmp_path / f"subset{number}"
        folder.mkdir()
        SimpleITK.WriteImage(scan, str(folder / f"1.2.{number}.mhd"))
    head = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    # 10 columns, 8 rows and 3 slices from the first voxel's centre
    rows = [f"1.2.{i},-95,-46,-194,4" for i in range(3)]
    table(tmp_path, head, *rows, name="annotations.csv")
    table(tmp_path, head, "1.2.0,-90,-45,-190,-1", name="annotations_excluded.csv")
    data = check(open_boxes(f"luna16:{tmp_path}", dims=3))
    assert data.spheres
    assert data.classes == ("nodule",)
    assert by_name(data)["subset1/1.2.1.mhd"] == [("nodule", 2.5, 4.5, 6.5, 4.5, 12.5, 14.5)]
    assert by_name(data)["subset3/1.2.3.mhd"] == []
    assert by_name(data)["subset0/1.2.0.mhd"][1] == (None, 3.0, 0.5, 10.5, 8.0, 20.5, 30.5)
    # The release's own folds are its subsets
    divided = data.folds(4, seed=0)
    tested = [[fold.name(row) for row in fold.rows("test")] for fold in divided]
    assert tested == [[f"subset{k}/1.2.{k}.mhd"] for k in range(4)]
    assert divided[0].split_note.startswith("the source's own 4 folds")
    assert data.folds(2, seed=0)[0].split_note.startswith("2 folds by group")
    other = check(open_boxes(f"luna16:{tmp_path}", dims=3, how=Dividing(rule="random")))
    assert other.folds(4, seed=0)[0].split_note.startswith("4 folds by group")


def test_folds_of_a_table(tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{number}.png")
    rows = [f"{i}.png,{(2, 0, 2, 1, 0, 1)[i]},1,2,9,8" for i in range(6)]
    path = table(tmp_path, "path,fold,x_min,y_min,x_max,y_max", *rows)
    divided = check(open_boxes(str(path), dims=2)).folds(3, seed=0)
    tested = [[fold.name(row) for row in fold.rows("test")] for fold in divided]
    assert tested == [["1.png", "4.png"], ["3.png", "5.png"], ["0.png", "2.png"]]
    path = table(tmp_path, "path,fold,x_min,y_min,x_max,y_max", "0.png,first,1,2,9,8")
    with pytest.raises(InputError, match="line 2: fold 'first'"):
        open_boxes(str(path), dims=2)


@pytest.mark.parametrize("kind", ["pages", "members", "packed"])
def test_boxes_of_pages_members_and_packed_files(tmp_path: Path, kind: str) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (10, 20, 30), np.uint8)
    (tmp_path / "below").mkdir()
    if kind == "pages":
        tifffile.imwrite(tmp_path / "below/s.tif", stack, photometric="minisblack")
    elif kind == "members":
        np.savez(tmp_path / "below/s.npz", raw=stack, other=stack)
    for k, image in enumerate(stack):
        if kind == "packed":
            Image.fromarray(image).save(tmp_path / "x.pgm")
            (tmp_path / f"below/{k}.pgm.gz").write_bytes(gzip.compress((tmp_path / "x.pgm").read_bytes()))
    name = {"pages": "s.tif#page={}", "members": "s.npz#raw[{}]", "packed": "{}.pgm.gz"}[kind]
    rows = [f"{name.format(k)},{k},1,{k + 4},9" for k in range(10)]  # bare names are looked for below
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x_min,y_min,x_max,y_max", *rows]) + "\n")
    data = open_boxes(str(tmp_path / "boxes.csv"), dims=2)
    assert len(data.records) == 10
    for record, found in zip(data.records.tolist(), data.findings):
        assert found.values.tolist() == [[1, record, 9, record + 4]]
        assert np.array_equal(data.source.read(record).array[0], stack[record])


def coco(path: Path, images: list[str], *boxes: tuple, categories: tuple[str, ...] = ("thing", "a", "b")) -> None:
    """``boxes``: (image, category, x, y, width, height, crowd)."""
    ids = {name: k for k, name in enumerate(categories)}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 10 + i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(images)],
        "categories": [{"id": k, "name": name} for name, k in reversed(ids.items())],
        "annotations": [
            {
                "id": n,
                "image_id": 10 + i,
                "category_id": ids[c],
                "bbox": list(box),
                "iscrowd": crowd,
            }
            for n, (i, c, *box, crowd) in enumerate(boxes)
        ],
    }
    path.write_text(json.dumps(content))


COCO_BOXES = ((0, "b", 1, 2, 8, 6, 0), (0, "a", 1.5, 2.5, 3, 1, 0), (1, "a", 0, 0, 30, 20, 1))


@pytest.mark.parametrize(
    ("annotation", "images"),
    [
        ("{part}/_annotations.coco.json", "{part}"),
        ("annotations/instances_{part}2017.json", "{part}2017"),
        ("annotations/instances_{part}.json", "images/{part}"),
        ("{part}.json", "images"),
    ],
)
def test_coco_files_of_each_part(tmp_path: Path, annotation: str, images: str) -> None:
    for part in ("train", "val", "test"):
        names = [f"{part}_{i}.jpg" for i in range(3)]
        for name in names:
            picture(tmp_path / images.format(part=part) / name)
        coco(tmp_path / annotation.format(part=part), names, *COCO_BOXES)
    (tmp_path / "dataset.json").write_text('{"labels": {}}')  # of another program
    data = check(open_boxes(str(tmp_path), dims=2))
    assert data.classes == ("a", "b")  # in the order of their ids; a category without a box is none
    assert data.sizes() == {"train": 3, "val": 3, "test": 3}
    for part in ("train", "val", "test"):
        found = {Path(name).name: boxes for name, boxes in by_name(data).items()}
        assert found[f"{part}_0.jpg"] == [("a", 2.5, 1.5, 3.5, 4.5), ("b", 2, 1, 8, 9)]
        assert found[f"{part}_1.jpg"] == [(None, 0, 0, 20, 30)]
        assert found[f"{part}_2.jpg"] == []
        assert {data.parts[row] for row in range(9) if Path(data.name(row)).name.startswith(part)} == {part}


def test_one_coco_file_is_divided(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images", 8)
    coco(tmp_path / "annotations.json", names, *((i, "a", 1, 2, 3, 4, 0) for i in range(8)))
    whole = open_boxes(str(tmp_path), dims=2)
    assert whole.split_note.startswith("random, 7:1:2")
    assert open_boxes(str(tmp_path / "annotations.json"), dims=2).parts == whole.parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3}, "'images' is expected to be a list of objects"),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, "entry 0 of 'annotations' has no 'image_id'"),
        ({"annotations": [{"image_id": 10, "category_id": 1, "bbox": [1, 2, 3]}]}, r"has the bbox \[1, 2, 3\]"),
        (
            {"annotations": [{"image_id": 10, "category_id": 9, "bbox": [1, 2, 3, 4]}]},
            "category 9, which is not listed",
        ),
        (
            {"images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 60, "height": 20} for i in range(4)]},
            r"0\.png: is 20 x 30 .* on 20 x 60",
        ),
        ({"images": [{"id": 10, "file_name": "0.png"}] * 2}, "two images have the same id"),
        ({"images": [{"id": i, "file_name": "0.png"} for i in (10, 11)]}, r"the image 0\.png is in .* already"),
    ],
)
def test_wrong_coco_files_are_explained(tmp_path: Path, change: dict, message: str) -> None:
    names = pictures(tmp_path, 4)
    coco(tmp_path / "a.json", names, *((i, "a", 1, 2, 3, 4, 0) for i in range(4)))
    content = json.loads((tmp_path / "a.json").read_text()) | change
    (tmp_path / "a.json").write_text(json.dumps(content | {"info": "bbox"}))
    with pytest.raises(InputError, match="(?s)" + message):
        check(open_boxes(str(tmp_path), dims=2))


def test_coco_files_are_two_dimensional(tmp_path: Path) -> None:
    coco(tmp_path / "a.json", pictures(tmp_path, 4), *COCO_BOXES)
    with pytest.raises(InputError, match="holds 2D images, and the encoder takes volumes"):
        open_boxes(str(tmp_path), dims=3)


def test_boxes_around_the_parts_of_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = {}
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.png")
        mask = rng.choice(np.array([0, 2, 5], np.uint8), size=(20, 30), p=[0.9, 0.05, 0.05])
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
        expected[f"images/{i}.png"] = sorted(
            (
                (str(value), *(float(side.start) for side in place), *(float(side.stop) for side in place))
                for value in (2, 5)
                for place in ndimage.find_objects(ndimage.label(mask == value, structure=np.ones((3, 3)))[0])
            ),
            key=str,
        )
    data = check(open_boxes(str(tmp_path), dims=2))
    assert data.classes == ("2", "5")
    # Boxes that are one within another of equal corners are the same finding
    assert {name: sorted(set(found), key=str) for name, found in expected.items()} == by_name(data)
    assert "a box around each connected component" in data.origin
    above = check(open_boxes(str(tmp_path), dims=2, mask_threshold=4))
    assert above.classes == ("finding",)
    assert sum(len(found) for found in by_name(above).values()) == sum(
        name == "5" for found in by_name(data).values() for name, *_ in found
    )


def test_boxes_from_masks_follow_the_image_file(tmp_path: Path) -> None:
    """Image and mask of one volume saved in different orientations."""
    affine = np.diag([1.0, 1, 3, 1])
    mask = np.zeros((10, 8, 6), np.uint8)
    mask[1:3, 2:7, 4:6] = 255
    rows = ["image,mask"]
    for i in range(4):
        volume(tmp_path / f"{i}.nii", affine, mask.astype(np.int16))
        flipped = affine @ np.diag([-1.0, 1, 1, 1])
        flipped[0, 3] = affine[0, 3] + 9
        volume(tmp_path / f"m{i}.nii", flipped, mask[::-1].copy())
        rows.append(f"{i}.nii,m{i}.nii")
    data = check(open_boxes(table(tmp_path, *rows), dims=3))
    for row in range(4):
        found = data.read(row)
        inside = np.argwhere(found.image[0] > 0.5)
        assert found.boxes.corners.tolist() == [[*inside.min(0), *(inside.max(0) + 1)]]


def test_hippocampus_as_boxes(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "Task04_Hippocampus"
    files = sorted((folder / "labelsTr").glob("*.nii.gz"))[:6]
    rows = [f"{folder}/imagesTr/{file.name},{file}" for file in files]
    data = check(open_boxes(table(tmp_path, "image,mask", *rows), dims=3))
    assert data.classes == ("1", "2")
    for row in range(6):
        found = data.read(row)
        file = nibabel.load(folder / "labelsTr" / Path(data.name(row)).name)
        truth = np.asarray(file.dataobj)
        assert found.affine is not None
        assert found.native.affine is not None
        native = turned(found.boxes.corners, found.affine, found.native.affine)
        for k, value in enumerate((1, 2)):
            inside = np.argwhere(truth == value)
            mine = native[found.boxes.classes == k]
            assert [*mine[:, :3].min(0)[::-1], *mine[:, 3:].max(0)[::-1]] == [*inside.min(0), *(inside.max(0) + 1)]
