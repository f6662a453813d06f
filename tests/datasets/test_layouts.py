from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.layouts.pairing import pair, stem
from frepa.datasets.layouts.registry import find_layout, layouts
from frepa.errors import InputError


def picture(path: Path, size: tuple[int, int] = (8, 8), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)
    return path


def read(source: Path | str, dims: int = 2):
    layout, path = find_layout(str(source))
    return layout.name, layout.read(path, dims)


def test_drive_official(shared_data: Path) -> None:
    name, listing = read(shared_data / "DRIVE")
    assert name == "drive"
    assert listing.binary
    assert listing.unpaired == []
    assert len(listing.cases) == 40
    for case in listing.cases:
        number = int(case.name)
        assert case.split == ("train" if number >= 21 else "test")
        assert [path.name[:2] for path in (case.image, case.mask, case.fov) if path] == [case.name] * 3
        assert case.mask.parent.name == "1st_manual"
        assert case.fov is not None
        assert case.fov.parent.name == "mask"


def test_chase_matches_the_usual_split(shared_data: Path) -> None:
    folder = shared_data / "CHASE_DB1"
    name, listing = read(folder)
    assert name == "chase_db1"
    with open(folder / "splits.csv", newline="") as file:
        expected = {row["image"]: row["split"] for row in csv.DictReader(file)}
    assert {case.image.name: case.split for case in listing.cases} == expected
    for case in listing.cases:
        assert case.mask.name == f"{case.name}_1stHO.png"
        assert case.group == case.name[6:8]
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
    assert (name, [c.name for c in listing.cases], listing.unpaired) == ("stare", ["im0001"], ["im0002.ppm"])
    (tmp_path / "stare" / "stare-images" / "im0003.ppm.gz").touch()
    with pytest.raises(InputError, match="gunzip"):
        read(tmp_path / "stare")


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
    assert [c.split for c in listing.cases] == ["train", "val", "test"]
    assert all(c.image.parent.name == c.mask.parent.name or "labels" in c.mask.parts for c in listing.cases)


def test_decathlon_volumes(shared_data: Path, tmp_path: Path) -> None:
    for name in ("a", "b_0000"):
        for folder, file in (("imagesTr", name), ("labelsTr", name.removesuffix("_0000"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"{file}.npy", np.zeros((4, 5, 6), dtype=np.uint8))
    name, listing = read(tmp_path, dims=3)
    assert (name, [(c.name, c.mask.name) for c in listing.cases]) == ("decathlon", [("a", "a.npy"), ("b", "b.npy")])


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
        ("path,mask\na.png,a.png\n", "no column 'image'.*path, mask"),
        ("image,mask\na.png,\n", "line 2: the column 'mask' is empty"),
        ("image,mask\na.png,gone.png\n", r"line 2: .*gone\.png was not found"),
        ("image,mask,split\na.png,a.png,tset\n", "'tset' is not known. Did you mean test"),
        ("image,mask,split\na.png,a.png,test\na.png,a.png,\n", "1 of 2 rows have a split"),
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
    with pytest.raises(InputError, match=r"not a drive set. Expected training/images"):
        read(f"drive:{tmp_path}")
    with pytest.raises(InputError, match="Did you mean drive"):
        read(f"drvie:{tmp_path}")
    with pytest.raises(InputError, match="not found"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no labelled images were recognised") as error:
        read(tmp_path / "empty")
    assert all(name in str(error.value) for name in layouts())


def test_pairing_prefers_names_and_does_not_guess_when_unsure(tmp_path: Path) -> None:
    def paths(*names: str) -> list[Path]:
        return [Path(name) for name in names]

    exact = pair(paths("a_1.png", "b_2.png"), paths("b_2.png", "a_1.png", "x_2.png"))
    assert exact == {Path("a_1.png"): Path("a_1.png"), Path("b_2.png"): Path("b_2.png")}
    # Numbers alone, one file left over: no guess.
    assert pair(paths("img_1.png", "img_2.png"), paths("foo_1.png")) == {}
    assert len(pair(paths("scan1.png", "scan2.png"), paths("seg_01.png", "seg_02.png"))) == 2
    assert stem(Path("a.b.nii.gz")) in ("a.b", "a.b.nii")
