from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.annotations import Annotations
from frepa.datasets.cases import SegmentationSet, cases_of
from frepa.datasets.layouts.pairing import check_pairs, pair, stem
from frepa.datasets.opening import open_annotated, open_source
from frepa.errors import InputError


def picture(path: Path, size: tuple[int, int] = (8, 8), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)
    return path


def read(source: Path | str, dims: int = 2) -> tuple[str, SegmentationSet]:
    known = open_annotated(str(source), dims, "mask", canonical=False)
    return known.layout, cases_of(known, "set")


def test_drive_official(shared_data: Path) -> None:
    name, listing = read(shared_data / "DRIVE")
    assert name == "drive"
    assert listing.binary
    assert listing.unpaired == ()
    assert listing.target == "vessel"
    named = read(f"drive:{shared_data / 'DRIVE'}")[1]
    known = [[(c.name, c.image, c.mask, c.fov, c.group, c.split) for c in item.cases] for item in (listing, named)]
    assert known[0] == known[1]
    assert len(listing.cases) == 40
    for case in listing.cases:
        number = case.name[:2]
        assert case.split == ("train" if int(number) >= 21 else "test")
        assert [path.name[:2] for path in (case.image, case.mask, case.fov) if path] == [number] * 3
        assert case.mask.parent.name == "1st_manual"
        assert case.fov is not None
        assert case.fov.parent.name == "mask"


def test_chase_matches_the_usual_split(shared_data: Path) -> None:
    folder = shared_data / "CHASE_DB1"
    name, listing = read(folder)
    assert name == "chasedb1"
    assert read(f"chase_db1:{folder}")[1].cases[3].mask == listing.cases[3].mask
    with open(folder / "splits.csv", newline="") as file:
        expected = {row["image"]: row["split"] for row in csv.DictReader(file)}
    assert {case.image.name: case.split for case in listing.cases} == expected
    for case in listing.cases:
        assert case.mask.name == f"{case.name}_1stHO.png"
        assert {other.group for other in listing.cases if other.name[6:8] == case.name[6:8]} == {case.group}
        assert case.fov is not None
        assert case.fov.stem == case.name


def test_octa_500(shared_data: Path) -> None:
    name, listing = read(shared_data / "OCTA500_3M")
    assert name == "folders"
    splits = [case.split for case in listing.cases]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (140, 10, 0)
    assert all(case.image.name == case.mask.name for case in listing.cases)


def test_images_and_masks_with_other_names(shared_data: Path) -> None:
    _, listing = read(shared_data / "STU_Hospital")
    assert len(listing.cases) == 42
    assert all(case.image.stem.split("_")[-1] == case.mask.stem.split("_")[-1] for case in listing.cases)
    _, listing = read(shared_data / "dsb2018_96")  # masks lie one folder deeper
    assert len(listing.cases) == 670
    assert all(case.image.stem == case.mask.stem for case in listing.cases)


def test_hrf_and_stare(tmp_path: Path) -> None:
    for name in ("01_dr", "02_g", "03_h"):
        picture(tmp_path / "hrf" / "images" / f"{name}.JPG")
        picture(tmp_path / "hrf" / "manual1" / f"{name}.tif")
        picture(tmp_path / "hrf" / "mask" / f"{name}_mask.tif")
    name, listing = read(tmp_path / "hrf")
    assert name == "hrf"
    assert [(c.name, c.mask.name, c.fov and c.fov.name) for c in listing.cases] == [
        (n, f"{n}.tif", f"{n}_mask.tif") for n in ("01_dr", "02_g", "03_h")
    ]
    picture(tmp_path / "stare" / "stare-images" / "im0001.ppm")
    picture(tmp_path / "stare" / "stare-images" / "im0002.ppm")
    picture(tmp_path / "stare" / "labels-ah" / "im0001.ah.ppm")
    name, listing = read(tmp_path / "stare")
    assert (name, [c.name for c in listing.cases], listing.unpaired) == (
        "stare",
        ["im0001"],
        ("stare-images/im0002.ppm",),
    )
    for file in (tmp_path / "stare").rglob("*.ppm"):  # as released
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read(tmp_path / "stare")[1]
    assert [(c.name, c.mask.name) for c in packed.cases] == [("im0001", "im0001.ah.ppm.gz")]
    assert packed.cases[0].source.read(packed.cases[0].record).size == (8, 8)


def test_flat_folders_with_a_field_of_view(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "Images" / f"eye{i}.png")
        picture(tmp_path / "Masks" / f"eye{i}_mask.png")
        picture(tmp_path / "fov" / f"eye{i}_fov.png")
    _, listing = read(tmp_path)
    assert [(c.mask.name, c.fov and c.fov.name, c.split) for c in listing.cases] == [
        (f"eye{i}_mask.png", f"eye{i}_fov.png", None) for i in range(3)
    ]


@pytest.mark.parametrize("order", ["{part}/images", "images/{part}"])
def test_divided_folders(tmp_path: Path, order: str) -> None:
    for part in ("training", "val", "test"):
        picture(tmp_path / order.format(part=part) / "a.png")
        picture(tmp_path / order.format(part=part).replace("images", "labels") / "a.png")
    _, listing = read(tmp_path)
    assert sorted(str(c.split) for c in listing.cases) == ["test", "train", "val"]
    assert all(str(c.split) in str(c.image) for c in listing.cases)
    assert all(c.image.parent.name == c.mask.parent.name or "labels" in c.mask.parts for c in listing.cases)


def test_decathlon_volumes(shared_data: Path, tmp_path: Path) -> None:
    for name in ("a", "b_0000"):
        for folder, file in (("imagesTr", name), ("labelsTr", name.removesuffix("_0000"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"{file}.npy", np.zeros((4, 5, 6), dtype=np.uint8))
    name, listing = read(tmp_path, dims=3)
    # nnU-Net's number of the channel stays in the name
    expected = [("a", "a.npy"), ("b_0000", "b.npy")]
    assert (name, [(c.name, c.mask.name) for c in listing.cases]) == ("folders", expected)
    assert read(f"decathlon:{tmp_path}", dims=3)[1].cases[1].mask.name == "b.npy"
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "left": 1}}')
    (tmp_path / "splits_final.json").write_text(json.dumps([{"val": ["b"]}, {"val": ["a"]}]))
    listing = read(tmp_path, dims=3)[1]
    assert dict(listing.values) == {0: "background", 1: "left"}
    assert [c.fold for c in listing.cases] == [1, 0]


def test_several_channels_are_refused(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001"):
        picture(tmp_path / "imagesTr" / f"{name}.png")
    picture(tmp_path / "labelsTr" / "a.png")
    with pytest.raises(InputError, match="several image channels"):
        read(tmp_path)


def test_manifest(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "m/a.png", "m/b.png"):
        picture(tmp_path / name)
    table = tmp_path / "set.csv"
    table.write_text("image,mask,split,group\na.png,m/a.png,training,p1\nb.png,m/b.png,test,p2\n")
    name, listing = read(table)
    assert name == "manifest"
    assert [(c.name, c.mask, c.split, c.group) for c in listing.cases] == [
        ("a", tmp_path / "m/a.png", "train", "p1"),
        ("b", tmp_path / "m/b.png", "test", "p2"),
    ]
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"image": ["a.png"], "mask": ["m/a.png"]}), tmp_path / "set.parquet")
    assert read(tmp_path / "set.parquet")[1].cases[0].mask == tmp_path / "m/a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,mask\na.png,a.png\n", "no column 'path'; its columns are file, mask"),
        ("image,mask\na.png,\n", "has no masks"),
        ("image,mask\na.png,gone.png\n", r"set\.csv: 1 of 1 masks are not there, such as .*gone\.png"),
        ("image,mask,split\na.png,a.png,tset\n", "'tset' is not known. Expected train, val or test"),
    ],
)
def test_manifests_that_are_wrong_are_explained(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "set.csv")


def test_a_layout_can_be_named_and_is_held_to_it(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "masks" / "a.png")
    assert read(f"folders:{tmp_path}")[0] == "folders"
    with pytest.raises(InputError, match="No image of drive was found"):
        read(f"drive:{tmp_path}")
    with pytest.raises(InputError, match="Did you mean drive"):
        read(f"drvie:{tmp_path}")
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not in the layout voc\. Expected a Pascal VOC folder"):
        open_source(f"voc:{tmp_path}")
    # The masks are no images, unless somebody wants the files as they are
    assert [len(open_source(text)) for text in (str(tmp_path), f"files:{tmp_path}")] == [1, 2]
    assert open_source(str(tmp_path)).aside.startswith("1 files are masks by the layout of the folder")


def test_pairing_says_how_and_does_not_guess() -> None:
    exact = pair(["a_1.png", "b_2.png"], ["b_2.png", "a_1.png", "x_2.png"])
    assert (exact.of, exact.how, exact.others) == (
        {"a_1.png": "a_1.png", "b_2.png": "b_2.png"},
        "equal names",
        ["x_2.png"],
    )
    numbers = pair(["scan1.png", "scan2.png"], ["seg_02.png", "seg_01.png"])
    assert numbers.of == {"scan1.png": "seg_01.png", "scan2.png": "seg_02.png"}
    assert "by their numbers alone: scan1.png with seg_01.png" in numbers.sentence("masks")
    assert stem("x/a.b.nii.gz") == "a.b"
    assert stem("im1.ppm.gz") == "im1"


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        # Nine of ten pair off by number, and every one of them wrongly
        ([f"patient_{i:02d}.png" for i in range(10)], [f"m_{i:02d}.png" for i in range(1, 11)]),
        (["img_1.png", "img_2.png"], ["foo_1.png"]),
        (["a.png", "b.png", "c.png"], ["a.png", "b.png", "d.png"]),
        (["a_image.png", "b_image.png"], ["a_mask.png", "x_mask.png"]),
    ],
)
def test_leftovers_on_both_sides_are_refused(tmp_path: Path, images: list[str], masks: list[str]) -> None:
    with pytest.raises(InputError, match="do not pair off by their names"):
        check_pairs(pair(images, masks), "here", "masks")
    for folder, names in (("images", images), ("masks", masks)):
        for name in names:
            picture(tmp_path / folder / name)
    with pytest.raises(InputError, match=r"Left over are .* images .* and .* masks"):
        read(tmp_path)
    # Whoever only wants images can have them
    assert len(open_source(str(tmp_path))) == len(images) + len(masks)


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    for name in ("benign/1.png", "malignant/2.png"):
        picture(tmp_path / name)
    with pytest.raises(InputError, match=r"no masks, .* classes of 2\. frepa classify learns from these"):
        open_annotated(str(tmp_path), 2, "mask")
    with pytest.raises(InputError, match="no boxes"):
        open_annotated(str(tmp_path), 2, "boxes", instead="mask")
    known = open_annotated(str(tmp_path), 2, "label")
    assert isinstance(known, Annotations)
    assert known.labels == [("benign",), ("malignant",)]
    with pytest.raises(InputError, match=r"no classes, .* nothing else is known"):
        open_annotated(str(tmp_path / "benign"), 2, "label")
