"""The catalogue's own data, and what its schema refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from frepa.datasets.catalogue.entry import dataset_ids, load_entries, load_entry, read_entry
from frepa.datasets.catalogue.patterns import pattern
from frepa.datasets.catalogue.steps import check_step
from frepa.errors import InputError

# Rows of the paper's Tables 1 and 2: 31 and 26, five of them in both.
_TABLE_1, _TABLE_2, _BOTH = 31, 26, 5
# Table 1's numbers of images, as printed.
_PRINTED = {
    "deeplesion": 928020, "ct-colonography": 660207, "msd": 147796, "cq500": 72282, "hcc-tace-seg": 51887,
    "ucsf-pdgm": 11523, "brats2021": 79112, "duke-breast-cancer-mri": 773253, "acrin-6698": 891786,
    "colorectal-liver-metastases": 17836, "chexpert": 224316, "mimic-cxr": 371920, "nih-chestxray14": 112120,
    "covid19-radiography": 21165, "covidgr": 852, "breast-lesions-usg": 522, "fetal-planes-db": 12400,
    "muscle-fascicle-us": 42000, "tn3k": 3493, "ebus": 1000, "micro-ultrasound-prostate": 2910, "oct2017": 84484,
    "oct-classification-li2019": 66075, "octdl": 2064, "olives": 33533, "retinal-oct-c8": 24000, "odir-5k": 5000,
    "aptos2019": 3662, "eyepacs-dr": 63419, "isic2019": 77245, "private-dermoscopy": 21152,
}  # fmt: skip

_MINIMAL = {
    "id": "mine",
    "name": "Mine",
    "summary": "A set.",
    "modality": "CT",
    "dims": 2,
    "role": "extra",
    "access": "open",
    "licence": {"name": "CC0", "status": "verified"},
    "confidence": "high",
}


def _write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**_MINIMAL, **changes}))
    return path


def test_the_papers_datasets_are_all_there() -> None:
    entries = [entry for entry in load_entries() if entry.role != "extra"]
    assert len(entries) == 52
    assert sum(1 in entry.paper["tables"] for entry in entries) == _TABLE_1
    assert sum(2 in entry.paper["tables"] for entry in entries) == _TABLE_2
    assert sum(entry.role == "both" for entry in entries) == _BOTH
    for entry in entries:
        tables = {"pretraining": [1], "downstream": [2], "both": [1, 2]}[entry.role]
        assert entry.paper["tables"] == tables, entry.id


def test_numbers_of_table_1_are_as_printed() -> None:
    listed = {entry.id: entry.paper["images"] for entry in load_entries() if 1 in entry.paper.get("tables", [])}
    assert listed == _PRINTED
    assert sum(_PRINTED.values()) == 4_807_034  # the rows' sum; the OCT subtotal is printed 11 higher than its rows


def test_the_papers_32_tasks_are_there() -> None:
    tasks = [(task["id"], entry.dims) for entry in load_entries() for task in entry.paper_tasks]
    assert len(tasks) == len({name for name, _ in tasks}) == 32
    printed = [value for entry in load_entries() for task in entry.paper_tasks for value in task["printed"].items()]
    for metric, values in printed:
        for number in values.values():
            assert 0 < number <= (100 if metric == "DSC" else 1), (metric, number)
    drive = load_entry("drive").paper_tasks[0]["printed"]["DSC"]
    assert drive == {"mae": 78.75, "frepa_vit": 82.90, "frepa_swint": 83.56, "frepa_convnext": 84.00}


@pytest.mark.parametrize("dataset", dataset_ids())
def test_steps_exist_and_take_their_options(dataset: str) -> None:
    entry = load_entry(dataset)
    assert entry.read
    for step in entry.read:
        for name, options in step.items():
            check_step(name, options, dataset)


@pytest.mark.parametrize("dataset", dataset_ids())
def test_entry_is_coherent(dataset: str) -> None:
    entry = load_entry(dataset)
    assert all(other["with"] in dataset_ids() for other in entry.overlaps)
    assert entry.homepage is None or entry.homepage.startswith("http")
    assert entry.homepage or entry.access in ("in-house", "unknown")
    for text in entry.ignore:
        pattern(text)
    for download in entry.downloads:
        kind, _, digest = download.checksum.partition(":")
        assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        assert set(download.select) <= set(entry.options)
    # What may be fetched by program is openly licensed, and the licence was read.
    if entry.downloads:
        assert entry.access == "open"
        assert entry.licence["status"] == "verified"
        assert entry.licence["name"].startswith("CC BY")
    for count in entry.counts:
        assert count.n > 0


def test_no_file_speaks_of_a_machine() -> None:
    for path in (Path(__file__).parents[3] / "src/frepa/images/catalogue/data").glob("*.yaml"):
        assert not re.search(r"/(home|root|work|tmp)/|this machine", path.read_text()), path.name


def test_a_minimal_entry_is_enough(tmp_path: Path) -> None:
    entry = read_entry(_write(tmp_path))
    assert (entry.id, entry.images, entry.read) == ("mine", None, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": "xray"}, ["mine.yaml: modality is 'xray'", "X-ray"]),
        ({"dims": "2D"}, ["dims must be int, found '2D'"]),
        ({"dims": True}, ["dims must be int, found True"]),
        ({"dims": 4}, ["dims is 4", "2, 3"]),
        ({"licence": {"name": "CC0"}}, ["licence.status is None", "recalled"]),
        ({"licens": "CC0"}, ["no key 'licens'", "Did you mean licence"]),
        ({"pitfalls": "one"}, ["pitfalls must be list, found 'one'"]),
        ({"pitfalls": [{"a": "b"}]}, ["pitfalls must hold text only"]),
        ({"counts": [{"of": "pictures", "n": 3}]}, ["counts.of is 'pictures'", "images"]),
        ({"counts": [{"of": "images"}]}, ["counts[0]: the key 'n' is missing"]),
        ({"downloads": [{"url": "https://x/y", "checksum": "crc:1"}]}, ["checksum is 'crc'", "md5, sha256"]),
        ({"read": [{"files": {}, "masks": {}}]}, ["every item of read is one step"]),
        ({"id": "yours"}, ["the id is 'yours'", "'mine'"]),
        ({"tasks": ["regression"]}, ["tasks is 'regression'"]),
    ],
)
def test_a_wrong_entry_is_refused_in_plain_words(tmp_path: Path, changes: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_entry(_write(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_and_broken_yaml_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path)
    path.write_text(path.read_text().replace("summary: A set.\n", ""))
    with pytest.raises(InputError, match="the key 'summary' is missing"):
        read_entry(path)
    path.write_text("id: [1, 2\n")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_entry(path)
    path.write_text("just text\n")
    with pytest.raises(InputError, match="must hold keys and values"):
        read_entry(path)


@pytest.mark.parametrize(
    ("step", "options", "words"),
    [
        ("file", {}, "no reading step 'file'"),
        ("files", {"paterns": []}, "Did you mean patterns"),
        ("files", {}, "needs the option 'patterns'"),
    ],
)
def test_a_wrong_step_is_refused(step: str, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_step(step, options, "mine")


def test_unknown_dataset_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean octa-500"):
        load_entry("octa500")
    assert load_entry(" DRIVE ").id == "drive"
