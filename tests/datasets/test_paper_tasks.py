"""Every task of the paper opens in its verb by the identifier of its dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import catalogue_cases_chest
import catalogue_cases_eye
import catalogue_cases_other
import catalogue_cases_volumes
from catalogue_trees import Case
from frepa.datasets.catalogue.entry import load_entries
from frepa.datasets.labels import LabelMap
from frepa.datasets.reading import mask_of, read_case
from frepa.datasets.stacks import Dividing
from frepa.downstream.classification.data import open_data
from frepa.downstream.detection.data import check, open_boxes
from frepa.downstream.segmentation.data import check_sets, open_sets

_MODULES = (catalogue_cases_chest, catalogue_cases_eye, catalogue_cases_other, catalogue_cases_volumes)
TREES: dict[str, Case] = {name: case for module in _MODULES for name, case in module.CASES.items()}
TASKS = {task["id"]: (entry, task) for entry in load_entries() for task in entry.paper_tasks}
_ACDC = ("background", "right ventricle", "myocardium", "left ventricle")
_ABDOMEN = ("background", "liver", "kidney", "spleen", "pancreas")
_AMOS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "oesophagus", "liver", "stomach", "aorta", "postcava"),
    *("pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate or uterus"),
)
_DR = ("Moderate", "Proliferative DR")
_CANCERS = ("adenocarcinoma", "large.cell.carcinoma", "normal", "squamous.cell.carcinoma")
_COVID = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")

# Task: selection, classes (of masks their names or what they show), and cases in train, val, test and no part, each
# counted by hand in the small tree of its dataset
EXPECTED: dict[str, tuple[str, tuple[str, ...], tuple[int, int, int, int]]] = {
    "drive-vessel": ("", ("vessel",), (1, 0, 0, 0)),
    "chasedb1-vessel": ("", ("vessel",), (2, 0, 0, 0)),
    "hrf-vessel": ("", ("vessel",), (0, 0, 0, 3)),
    "octa-artery": ("?target=artery&projection=OCTA(FULL)", ("artery",), (0, 1, 1, 0)),
    "octa-vein": ("?target=vein&projection=OCTA(ILM_OPL)", ("vein",), (1, 0, 0, 0)),
    "oct-artery": ("?target=artery&projection=OCT(FULL)", ("artery",), (1, 0, 0, 0)),
    "oct-vein": ("?target=vein&projection=OCT(FULL)", ("vein",), (1, 0, 0, 0)),
    "cremi-gap": ("", ("neurons",), (0, 0, 0, 4)),
    "acdc-heart": ("", _ACDC, (2, 0, 1, 0)),
    "amos22-organs": ("", _AMOS, (1, 1, 0, 0)),
    "abdomen1k-liver": ("", _ABDOMEN, (0, 0, 0, 1)),
    "abdomen1k-kidney": ("", _ABDOMEN, (0, 0, 0, 1)),
    "abdomen1k-spleen": ("", _ABDOMEN, (0, 0, 0, 1)),
    "pulmonary-artery": ("?target=artery", ("artery",), (0, 0, 0, 1)),
    "pulmonary-vein": ("?target=vein", ("vein",), (0, 0, 0, 1)),
    "heart-seg": ("", ("heart",), (0, 0, 0, 1)),
    "lung-seg": ("", ("lung",), (0, 0, 0, 2)),
    "pneumonia-infection": ("", ("background", "infection"), (0, 0, 0, 2)),
    "aptos2019-cls": ("", _DR, (0, 0, 0, 2)),
    "isic2019-cls": ("", ("MEL", "NV"), (3, 0, 0, 0)),
    "oct2017-cls": ("", ("CNV", "DME", "DRUSEN", "NORMAL"), (2, 1, 1, 0)),
    "octmnist-cls": ("", ("choroidal neovascularization", "drusen", "normal"), (1, 1, 1, 0)),
    "pneumoniamnist-cls": ("", ("normal", "pneumonia"), (2, 1, 1, 0)),
    "breastmnist-cls": ("", ("malignant", "normal, benign"), (1, 1, 1, 0)),
    "fetal-planes-cls": ("", ("Fetal brain", "Maternal cervix", "Other"), (2, 0, 1, 0)),
    "tianchi-cancer": ("", _CANCERS, (2, 1, 2, 0)),
    "covid19-radiography-cls": ("", _COVID, (0, 0, 0, 4)),
    "covid19-pa-cls": ("", ("covid", "normal", "pneumonia"), (0, 0, 0, 3)),
    "copd": ("", ("copd", "healthy"), (0, 0, 0, 2)),
    "pneumonia-ct": ("", ("1",), (0, 0, 0, 1)),
    "luna16-nodule": ("", ("nodule",), (0, 0, 0, 2)),
    "lung-tumor": ("", ("adenocarcinoma", "small cell carcinoma"), (0, 0, 0, 2)),
}


def test_the_paper_has_these_tasks() -> None:
    assert set(EXPECTED) == set(TASKS)
    assert len(EXPECTED) == 32


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_opens_by_its_identifier(name: str, tmp_path: Path) -> None:
    entry, task = TASKS[name]
    selection, classes, counts = EXPECTED[name]
    TREES[entry.id].build(tmp_path / "data")
    text, dims = f"{entry.id}{selection}:{tmp_path / 'data'}", task["dims"]
    if task["type"] == "segmentation":
        (found,) = open_sets([text], dims=dims, how=Dividing(complete=False))
        assert (tuple(text for _, text in found.values) or (found.target,)) == classes
        parts = [case.split for case in found.cases]
        for case in found.cases:  # masks can be decoded, and fit
            labels = LabelMap((0, 1), 0)
            assert read_case(case, labels, dims).classes.shape == mask_of(case, dims).array.shape[1:]
    elif task["type"] == "classification":
        data = open_data(text, dims=dims, how=Dividing(complete=False))
        assert data.classes == classes
        parts = list(data.parts)
    else:
        boxed = open_boxes(text, dims=dims, how=Dividing(complete=False))
        assert boxed.classes == classes
        assert boxed.spheres == (name == "luna16-nodule")
        parts = list(boxed.parts)
    # What has no part is tested on
    train, val, test, none = counts
    assert [parts.count(part) for part in ("train", "val", "test")] == [train, val, test + none]


# Task: cases, classes, sizes of the parts of the official split, completed
REAL = {
    "drive": ("DRIVE", 2, 40, ("background", "vessel"), (17, 3, 20)),
    "chasedb1": ("CHASE_DB1", 2, 28, ("background", "vessel"), (18, 2, 8)),
    "octa-500": ("OCTA500_3M", 2, 150, ("background", "large_vessel"), (122, 18, 10)),
    "pneumoniamnist": ("MedMNIST/pneumoniamnist.npz", 2, 5856, ("normal", "pneumonia"), (4708, 524, 624)),
    "breastmnist": ("MedMNIST", 2, 780, ("malignant", "normal, benign"), (546, 78, 156)),
    "adrenalmnist3d?size=28": ("MedMNIST", 3, 1584, ("normal", "hyperplasia"), (1188, 98, 298)),
    "busi": ("BUSI_256", 2, 780, ("benign", "malignant", "normal"), (546, 78, 156)),
    "bccd": ("BCCD", 2, 292, ("RBC", "WBC", "Platelets"), (179, 26, 87)),
    "msd": ("Task04_Hippocampus", 3, 260, ("background", "Anterior", "Posterior"), (182, 26, 52)),
}


@pytest.mark.parametrize("dataset", REAL)
def test_real_copies_open_by_their_identifier(dataset: str, shared_data: Path) -> None:
    folder, dims, cases, classes, sizes = REAL[dataset]
    text = f"{dataset}:{shared_data / folder}"
    if dataset in ("drive", "chasedb1", "octa-500", "msd"):
        data = check_sets(open_sets([text], dims=dims), dims=dims)
        (item,) = data.sets
        assert data.labels[item.name].names == classes
        assert [len(item.part(part)) for part in ("train", "val", "test")] == list(sizes)
        assert len(item.cases) == cases
        return
    found = check(open_boxes(text, dims=dims)) if dataset == "bccd" else open_data(text, dims=dims)
    assert found.classes == classes
    assert tuple(found.sizes().values()) == sizes
    assert len(found.records) == cases


def test_gaps_between_cells_are_where_two_neurons_meet(tmp_path: Path) -> None:
    import h5py

    ids = np.zeros((3, 6, 8), np.uint64)
    ids[:, :, :4], ids[:, :, 4:] = 7, 2**40
    clefts = np.full(ids.shape, 2**64 - 1, np.uint64)
    clefts[1, 2:4, 2:4] = 5
    with h5py.File(tmp_path / "sample_A_20160501.hdf", "w") as file:
        raw = file.create_dataset("volumes/raw", data=np.zeros(ids.shape, np.uint8))
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        file.create_dataset("volumes/labels/neuron_ids", data=ids)
        file.create_dataset("volumes/labels/clefts", data=clefts)
    for target, expected in (("neurons", (2 * 6, 2 * 6, 2 * 6)), ("clefts", (0, 4, 0))):
        data = check_sets(
            open_sets([f"cremi?target={target}:{tmp_path}"], dims=2, how=Dividing(complete=False)), dims=2
        )
        assert data.labels[data.sets[0].name].names == ("background", target)
        masks = [read_case(item.case, item.labels, 2).classes for item in data.part("test")]
        assert tuple(int(mask.sum()) for mask in masks) == expected
    assert masks[1][2:4, 2:4].all()
