"""Sources of the catalogue: how they are written, what they select, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalogue_cases_eye import CASES
from catalogue_trees import cremi, dicom, medmnist, series, write
from frepa.datasets.annotations import facts_of
from frepa.datasets.catalogue.entry import load_entry
from frepa.datasets.catalogue.listing import open_catalogue
from frepa.datasets.catalogue.resolve import parse_source, read_dataset, resolve
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.places import split_place


def test_a_source_is_dataset_and_folder(tmp_path: Path) -> None:
    CASES["drive"].build(tmp_path)
    parsed = parse_source(f"drive:{tmp_path}")
    assert parsed is not None
    entry, options, folder = parsed
    assert (entry.id, options, folder) == ("drive", {}, tmp_path)
    table = read_dataset(entry, folder, options).table()
    assert table.num_rows == 2
    assert facts_of(table)["dataset"] == "drive"
    assert table.equals(resolve("drive", tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "C:\\data\\drive",
        "C:/data",
        "data/images",
        "s3://bucket/x",
        "https://x.org/a",
        "nowhere:missing",
        "*.png",
        "a.npz#x",
    ],
)
def test_other_sources_are_left_alone(text: str) -> None:
    assert parse_source(text) is None


def test_an_existing_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("drive:here").mkdir()
    Path("here").mkdir()
    assert parse_source("drive:here") is None
    assert parse_source(str(tmp_path / "drive:here")) is None


def test_a_misspelt_dataset_is_named_only_where_the_folder_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean drive"):
        parse_source(f"drvie:{tmp_path}")
    with pytest.raises(InputError, match="There is no folder"):
        open_source("drive:/no/such/folder", dims=2)


def test_options_select(tmp_path: Path) -> None:
    CASES["octa-500"].build(tmp_path)
    everything = resolve("octa-500", tmp_path)
    assert everything.num_rows == 4
    parsed = parse_source(f"octa-500?fov=3mm:{tmp_path}")
    assert parsed is not None
    assert parsed[1] == {"fov": "3mm"}
    three = resolve("octa-500", tmp_path, fov="3mm")
    assert [Path(path).name for path in three["path"].to_pylist()] == ["10301.bmp"] * 2
    one = resolve("octa-500", tmp_path, fov="3mm", projection="octa-ilm-opl")
    assert one["path"].to_pylist() == [str(tmp_path / "OCTA_3mm/Projection Maps/OCTA(ILM_OPL)/10301.bmp")]
    assert resolve("octa-500", tmp_path, split="test")["split"].to_pylist() == ["test"]
    vein = resolve("octa-500", tmp_path, target="vein")
    assert facts_of(vein)["target"] == "vein"
    assert vein["mask"].to_pylist() == everything["mask_vein"].to_pylist()
    assert vein["mask_artery"].to_pylist() == everything["mask"].to_pylist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fov": "9mm"}, "no image with fov '9mm'"),
        ({"target": "arteries"}, "Did you mean artery"),
        ({"projections": "x"}, "Did you mean projection"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, str], words: str) -> None:
    CASES["octa-500"].build(tmp_path)
    with pytest.raises(InputError, match=words):
        resolve("octa-500", tmp_path, **options)


def test_an_option_needs_a_value(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size=64"):
        parse_source(f"pneumoniamnist?64:{tmp_path}")


def test_npz_size_is_selected_or_named(tmp_path: Path) -> None:
    for size in (28, 64):
        name = "breastmnist.npz" if size == 28 else f"breastmnist_{size}.npz"
        medmnist(size, 2, (1, 1, 1), [[0], [1], [1]])(tmp_path / name)
    table = resolve("breastmnist", tmp_path, size="28")
    assert table["path"].to_pylist()[0] == f"{tmp_path / 'breastmnist.npz'}#train_images[0]"
    assert resolve("breastmnist", tmp_path / "breastmnist.npz").equals(table)
    assert "64" in resolve("breastmnist", tmp_path)["path"][0].as_py()
    with pytest.raises(InputError, match="found size 28, 64"):
        resolve("breastmnist", tmp_path, size="224")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "breastmnist.npz").write_bytes(b"PK\3\4 cut short")
    with pytest.raises(InputError, match=r"breastmnist\.npz cannot be read as npz"):
        resolve("breastmnist", tmp_path)
    (tmp_path / "sample_A_20160501.hdf").write_bytes(b"\x89HDF cut short")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        resolve("cremi", tmp_path)


def test_labels_that_do_not_fit_their_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "breastmnist.npz", train_images=np.zeros((3, 28, 28), np.uint8), train_labels=np.zeros((2, 1)))
    with pytest.raises(InputError, match="3 images but 2 labels"):
        resolve("breastmnist", tmp_path)


def test_class_order_is_the_publishers(tmp_path: Path) -> None:
    CASES["aptos2019"].build(tmp_path)
    facts = facts_of(resolve("aptos2019", tmp_path))
    assert facts["classes"] == ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]
    assert facts["problems"] == []


def test_decathlon_label_names_come_from_the_file(tmp_path: Path) -> None:
    write(tmp_path / "Task07_Pancreas/imagesTr/pancreas_001.nii.gz")
    about = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "pancreas", "2": "cancer"}}
    (tmp_path / "Task07_Pancreas/dataset.json").write_text(json.dumps(about))
    table = resolve("msd", tmp_path)
    names = facts_of(table)["label_names"]
    assert names == {"Task07_Pancreas": {"0": "background", "1": "pancreas", "2": "cancer"}}
    assert "no labels mask" in facts_of(table)["problems"][0]


@pytest.mark.parametrize(("channel", "modality"), [("T2-weighted", "MRI"), ("CT", "CT"), ("something", "CT")])
def test_modality_of_an_unknown_task_comes_from_its_file(tmp_path: Path, channel: str, modality: str) -> None:
    write(tmp_path / "Task11_New/imagesTr/a.nii.gz")
    about = {"channel_names": {"0": channel}, "labels": {"background": 0, "thing": 1, "whole": [1, 2]}}
    (tmp_path / "Task11_New/dataset.json").write_text(json.dumps(about))
    table = resolve("msd", tmp_path)
    assert table["modality"].to_pylist() == [modality]
    assert facts_of(table)["label_names"] == {"Task11_New": {"0": "background", "1": "thing"}}


def test_padded_cremi_labels_are_joined_by_their_offset(tmp_path: Path) -> None:
    cremi(6, 2, offset=3)(tmp_path / "sample_C_padded_20160501.hdf")
    table = resolve("cremi", tmp_path)
    masks = [None if mask is None else mask.rpartition("#")[2] for mask in table["mask"].to_pylist()]
    label = "volumes/labels/neuron_ids"
    assert masks == [None, None, None, f"{label}[0]", f"{label}[1]", None]


def test_a_wrong_table_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train_images/a.png")
    (tmp_path / "train.csv").write_text("id_code,diagnosys\na,1\n")
    with pytest.raises(InputError, match=r"no column 'diagnosis'\. Did you mean diagnosys"):
        resolve("aptos2019", tmp_path)
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(InputError, match="is an empty table"):
        resolve("aptos2019", tmp_path)
    (tmp_path / "train.csv").unlink()
    assert "a table is missing" in facts_of(resolve("aptos2019", tmp_path))["problems"][0]


def test_findings_of_an_unknown_form_are_named(tmp_path: Path) -> None:
    write(tmp_path / "subset0/1.2.mhd")
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,2,three,4\n")
    with pytest.raises(InputError, match="line 2"):
        resolve("luna16", tmp_path)


def test_voc_files_with_a_document_type_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text('<!DOCTYPE x [<!ENTITY y "z">]><annotation>&y;</annotation>')
    with pytest.raises(InputError, match=r"a\.xml cannot be read as Pascal VOC"):
        resolve("bccd", tmp_path)


def test_patients_do_not_show(tmp_path: Path) -> None:
    """Neither names in the headers nor the release's identifiers reach the table or the problems."""
    for name, write_file in series("CRLM-CT-1001/s/1", 5, "CT", "9.8.7").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(tmp_path / name)
    (tmp_path / "CRLM-CT-1002").mkdir()
    dicom("SEG", "9.9", refers="1.1")(tmp_path / "CRLM-CT-1002" / "1-1.dcm")
    table = resolve("colorectal-liver-metastases", tmp_path)
    text = str(table.to_pylist()) + str(facts_of(table))
    assert "Secret" not in text
    assert "SECRET" not in text
    assert "9.8.7" not in text
    assert table["group"].to_pylist() != ["CRLM-CT-1001"]


def test_nothing_found_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InputError, match=r"DRIVE/training/images/21_training\.tif.*frepa datasets show drive"):
        read_dataset(load_entry("drive"), tmp_path)


def test_split_place() -> None:
    assert split_place("/a/b.npz#train_images[17]") == ("/a/b.npz", "train_images", 17)
    assert split_place("/a/b.npz#data") == ("/a/b.npz", "data", 0)
    assert split_place("/a/b #2.png") == ("/a/b #2.png", None, 0)
    assert split_place("/a/b.png") == ("/a/b.png", None, 0)


def test_opened_as_a_source(tmp_path: Path) -> None:
    """Images, labels, groups and Hounsfield units come through; the order is the table's."""
    folder = tmp_path / "Images_png" / "000001_01_01"
    folder.mkdir(parents=True)
    stored = np.array([[32768, 32769], [31744, 33168]], np.uint16)
    Image.fromarray(stored).save(folder / "001.png")
    (tmp_path / "DL_info.csv").write_text("File_name,Bounding_boxes,Coarse_lesion_type,Train_Val_Test\n")
    with pytest.raises(InputError, match="empty table"):
        open_source(f"deeplesion:{tmp_path}")
    (tmp_path / "DL_info.csv").write_text(
        "File_name,Bounding_boxes,Coarse_lesion_type,Train_Val_Test\n000009_01_01_001.png,,,1\n"
    )
    source = open_source(f"deeplesion:{tmp_path}")
    scan = source.read(0)
    np.testing.assert_array_equal(scan.array, [[[0, 1], [-1024, 400]]])
    assert (scan.unit, scan.modality, len(source)) == ("HU", "CT", 1)
    assert scan.group is not None
    assert "000001" not in scan.group
    assert source.name(0).endswith("000001_01_01/001.png")


def test_labels_splits_and_rows_of_a_stack(tmp_path: Path) -> None:
    images = np.arange(4 * 28 * 28, dtype=np.uint32).reshape(4, 28, 28).astype(np.uint8)
    np.savez(
        tmp_path / "pneumoniamnist.npz",
        train_images=images[:2], train_labels=[[0], [1]], val_images=images[2:3], val_labels=[[1]],
        test_images=images[3:], test_labels=[[0]],
    )  # fmt: skip
    source = open_catalogue(f"pneumoniamnist:{tmp_path}", dims=2)
    assert source.labels is not None
    assert source.labels.tolist() == ["normal", "pneumonia", "pneumonia", "normal"]
    assert source.annotations["split"].to_pylist() == ["train", "train", "val", "test"]
    for i in range(4):
        np.testing.assert_array_equal(source.read(i).array, images[i][None])
    assert source.name(1) == "pneumoniamnist.npz#train_images[1]"
    copy = pickle.loads(pickle.dumps(source))  # loader processes get a copy
    assert copy.fingerprint == source.fingerprint
    np.testing.assert_array_equal(copy.read(3).array, images[3][None])
    part = open_catalogue(f"pneumoniamnist?split=test:{tmp_path}", dims=2)
    assert len(part) == 1
    assert part.fingerprint != source.fingerprint
    with pytest.raises(InputError, match="Use dims 2"):
        open_catalogue(f"pneumoniamnist:{tmp_path}", dims=3)
