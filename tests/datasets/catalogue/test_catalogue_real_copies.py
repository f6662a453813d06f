"""The catalogue against real copies of public datasets; counts are those their own descriptions state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from frepa.datasets.annotations import facts_of
from frepa.datasets.catalogue.entry import load_entry, read_entry
from frepa.datasets.catalogue.listing import open_catalogue
from frepa.datasets.catalogue.resolve import read_dataset, resolve
from frepa.datasets.catalogue.verify import verify


def _counts(folder: Path, dataset: str, *columns: str) -> Counter:
    table = resolve(dataset, folder)
    return Counter(zip(*(table[column].to_pylist() for column in columns)))


def test_drive(shared_data: Path) -> None:
    table = resolve("drive", shared_data / "DRIVE")
    assert Counter(table["split"].to_pylist()) == {"train": 20, "test": 20}
    for row in table.to_pylist():
        number = Path(row["path"]).name[:2]
        assert (row["split"] == "train") == (21 <= int(number) <= 40)
        assert Path(row["mask"]).name == f"{number}_manual1.gif"
        assert "1st_manual" in row["mask"]
        assert Path(row["mask_fov"]).name.startswith(number)
    # Vessels cover 6 to 12 % of the image, the field of view more than half: the two were not swapped.
    share = np.mean(np.asarray(Image.open(table["mask"][0].as_py()).convert("L")) > 127)
    assert 0.05 < share < 0.13
    assert verify(load_entry("drive"), shared_data / "DRIVE").complete


def test_drive_is_read_as_a_source(shared_data: Path) -> None:
    source = open_catalogue(f"drive?split=train:{shared_data / 'DRIVE'}", dims=2)
    assert len(source) == 20
    assert source.channels == 3
    assert source.read(0).array.shape == (3, 584, 565)


def test_chase_db1(shared_data: Path) -> None:
    table = resolve("chasedb1", shared_data / "CHASE_DB1")
    assert table.num_rows == 28
    assert len(set(table["group"].to_pylist())) == 14
    for row in table.to_pylist():
        stem = Path(row["path"]).stem
        assert Path(row["mask"]).name == f"{stem}_1stHO.png"
        assert Path(row["mask_second_observer"]).name == f"{stem}_2ndHO.png"
    assert verify(load_entry("chasedb1"), shared_data / "CHASE_DB1").complete


def test_octa_500_as_a_folder_of_parts(shared_data: Path) -> None:
    folder = shared_data / "OCTA500_3M"
    table = resolve("octa-500", folder)
    assert _counts(folder, "octa-500", "split") == {("train",): 140, ("val",): 10}
    assert facts_of(table)["target"] == "large_vessel"
    for row in table.to_pylist():
        path = Path(row["path"])
        assert row["split"] == path.parents[1].name
        assert row["mask"] == str(path.parents[1] / "label" / path.name)
    result = verify(load_entry("octa-500"), folder)
    assert not result.complete
    assert [line.found for line in result.lines if line.differs] == [150]


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        (
            "pneumoniamnist",
            {("train", "normal"): 1214, ("train", "pneumonia"): 3494, ("val", None): 524, ("test", None): 624},
        ),
        (
            "breastmnist",
            {
                ("train", "malignant"): 147, ("train", "normal, benign"): 399, ("val", "malignant"): 21,
                ("val", "normal, benign"): 57, ("test", "malignant"): 42, ("test", "normal, benign"): 114,
            },
        ),
        ("adrenalmnist3d", {("train", None): 1188, ("val", None): 98, ("test", None): 298}),
    ],
)  # fmt: skip
def test_medmnist(shared_data: Path, dataset: str, counts: dict) -> None:
    folder = shared_data / "MedMNIST"
    found = _counts(folder, dataset, "split", "label")
    for (split, label), number in counts.items():
        assert sum(n for (s, name), n in found.items() if s == split and label in (None, name)) == number
    assert verify(load_entry(dataset), folder).complete


def test_medmnist_stack_is_the_files_own(shared_data: Path) -> None:
    file = shared_data / "MedMNIST" / "breastmnist.npz"
    source = open_catalogue(f"breastmnist?split=test:{file}", dims=2)
    with np.load(file) as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    assert source.labels is not None
    names = np.array(["malignant", "normal, benign"])
    assert source.labels.tolist() == names[labels[:, 0].astype(int)].tolist()
    for i in (0, 77, 155):
        np.testing.assert_array_equal(source.read(i).array[0], images[i])
    table = resolve("adrenalmnist3d", shared_data / "MedMNIST", size="64")
    assert {Path(path.partition("#")[0]).name for path in table["path"].to_pylist()} == {"adrenalmnist3d_64.npz"}


@pytest.mark.parametrize("above", [False, True])
def test_hippocampus_from_its_own_folder_or_the_one_above(shared_data: Path, tmp_path: Path, above: bool) -> None:
    folder = shared_data / "Task04_Hippocampus"
    if above:
        (tmp_path / "Task04_Hippocampus").symlink_to(folder)
    table = resolve("msd", tmp_path if above else folder)
    assert table.num_rows == 260
    assert set(table["modality"].to_pylist()) == {"MRI"}
    for row in table.to_pylist():
        assert Path(row["mask"]).name == Path(row["path"]).name
        assert Path(row["mask"]).parent.name == "labelsTr"
    names = facts_of(table)["label_names"]["Task04_Hippocampus"]
    assert [names[key].casefold() for key in ("1", "2")] == ["anterior", "posterior"]
    assert verify(load_entry("msd"), folder).complete


def test_isic2018(shared_data: Path) -> None:
    table = resolve("isic2018-task1", shared_data / "ISIC2018_Task1_256")
    assert table.num_rows == 2000  # this copy holds 2000 of 2594
    assert all(
        Path(mask).name == f"{Path(path).stem}_segmentation.png"
        for path, mask in zip(table["path"].to_pylist(), table["mask"].to_pylist())
    )


def test_busi(shared_data: Path) -> None:
    found = _counts(shared_data / "BUSI_256", "busi", "label")
    assert found == {("benign",): 437, ("malignant",): 210, ("normal",): 133}


def test_bccd(shared_data: Path) -> None:
    resolved = read_dataset(load_entry("bccd"), shared_data / "BCCD")
    table = resolved.table()
    assert Counter(table["split"].to_pylist()) == {"train": 205, "val": 87}
    assert resolved.records.notes == ["2 boxes without area, or of no listed class, were dropped"]
    for boxes in table["boxes"].to_pylist():
        for box in boxes:
            x1, y1, x2, y2 = box["coordinates"]
            assert 0 <= x1 < x2 <= 640
            assert 0 <= y1 < y2 <= 480


def _own_entry(tmp_path: Path, **about: object):
    """A dataset that is not in the catalogue, described in one file."""
    path = tmp_path / "mine.yaml"
    facts = {
        "id": "mine", "name": "Mine", "summary": "A set.", "modality": "CT", "dims": 3, "role": "extra",
        "access": "open", "licence": {"name": "own", "status": "verified"}, "confidence": "high",
    }  # fmt: skip
    path.write_text(yaml.safe_dump({**facts, **about}))
    return read_entry(path)


def test_dicom_series_with_empty_uids(shared_data: Path, tmp_path: Path) -> None:
    steps = [{"dicom_series": {"patterns": ["**/*_dicom/CT.*"], "modality": ["CT"], "group": "{parent}"}}]
    resolved = read_dataset(_own_entry(tmp_path, read=steps), shared_data / "TotalSegmentator_examples")
    assert resolved.records.columns["path"] == [str(shared_data / "TotalSegmentator_examples" / "example_ct_dicom")]
    assert resolved.records.fields[0]["slices"] == "20"
    assert resolved.records.columns["unit"] == ["HU"]


def test_dicom_series_of_one_patient(shared_data: Path, tmp_path: Path) -> None:
    steps = [{"dicom_series": {"patterns": ["**/{patient:PGBM-*}/**/*.dcm"], "modality": ["MR"], "group": "{patient}"}}]
    entry = _own_entry(tmp_path, read=steps, modality="MRI")
    records = read_dataset(entry, shared_data / "DICOM_MR_BrainTumorProgression").records
    assert [Path(path).name for path in records.columns["path"]] == ["11-T1post-18670", "36468-FLAIRreg-58706"]
    assert [fields["slices"] for fields in records.fields] == ["22", "22"]
    assert len(set(records.columns["group"])) == 1
    assert "PGBM" not in str(records.columns["group"])


def test_nodules_with_masks_table_and_patients(shared_data: Path, tmp_path: Path) -> None:
    steps = [
        {"files": {"patterns": ["**/VOIs/image/{case}.nii.gz"]}},
        {"masks": {"nodule": "**/VOIs/nodule_mask/{case}.nii.gz"}},
        {
            "table": {
                "patterns": ["**/metadata.csv"],
                "key": {"file": "{file}"},
                "label": "Diagnosis",
                "names": {"Benign": "benign", "Malign": "malignant"},
                "group": "patient_id",
                "split": "split",
            }
        },
    ]
    table = read_dataset(_own_entry(tmp_path, read=steps), shared_data / "LIDC_nodules").table()
    assert Counter(table["split"].to_pylist()) == {"train": 691, "val": 97}
    assert len(set(table["group"].to_pylist())) == 380 + 54
    assert table["mask"].null_count == 0
    assert table["label"].null_count == 0
    by_split: dict[str, set] = {"train": set(), "val": set()}
    for split, group in zip(table["split"].to_pylist(), table["group"].to_pylist()):
        by_split[split].add(group)
    assert not by_split["train"] & by_split["val"]
