"""Every dataset's published layout is built in small, and exactly what is in it must be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import catalogue_cases_chest
import catalogue_cases_eye
import catalogue_cases_other
import catalogue_cases_volumes
from catalogue_trees import Case
from frepa.datasets.catalogue.entry import dataset_ids, load_entry
from frepa.datasets.catalogue.resolve import Resolved, read_dataset
from frepa.datasets.catalogue.verify import verify

_MODULES = (catalogue_cases_chest, catalogue_cases_eye, catalogue_cases_other, catalogue_cases_volumes)
CASES: dict[str, Case] = {name: case for module in _MODULES for name, case in module.CASES.items()}
_COMPARED = ("split", "fold", "label", "labels", "boxes")


def _rows(resolved: Resolved, root: Path) -> dict[str, dict[str, Any]]:
    """Path relative to ``root`` -> row; masks relative too."""
    rows = {}
    for row in resolved.table().to_pylist():
        for name, value in row.items():
            if (name == "path" or name.startswith("mask")) and value is not None:
                row[name] = Path(value).relative_to(root).as_posix()
        rows[row["path"]] = row
    return rows


def _check(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    assert sorted(rows) == sorted(case.expect)
    group_of: dict[Any, str] = {}
    for path, expected in case.expect.items():
        row = rows[path]
        for column in _COMPARED:
            assert row[column] == expected.get(column), (path, column)
        for column in {name for name in row if name.startswith("mask")} | {n for n in expected if n.startswith("mask")}:
            assert row.get(column) == expected.get(column), (path, column)
        if "modality" in expected:
            assert row["modality"] == expected["modality"]
        if expected.get("group") is None:
            assert row["group"] is None, path
        else:
            assert group_of.setdefault(expected["group"], row["group"]) == row["group"], path
    assert len(set(group_of.values())) == len(group_of), "two patients share a group"


@pytest.mark.parametrize("dataset", sorted(CASES))
def test_layout_is_found(dataset: str, tmp_path: Path) -> None:
    """The folder as its archive leaves it, with the clutter archives bring."""
    case = CASES[dataset]
    root = tmp_path / "data"
    case.build(root)
    first = sorted(path for path in root.rglob("*") if path.is_file())[0]
    for clutter in (
        first.with_name("._" + first.name),
        root / "__MACOSX" / first.relative_to(root),
        root / ".DS_Store",
    ):
        clutter.parent.mkdir(parents=True, exist_ok=True)
        clutter.write_bytes(b"\0\5\x16\7")
    resolved = read_dataset(load_entry(dataset), root)
    _check(case, _rows(resolved, root))
    problems = resolved.records.problems
    assert len(problems) == len(case.problems), problems
    for word, problem in zip(case.problems, problems):
        assert word in problem
    result = verify(load_entry(dataset), root)
    assert result.unexpected == []
    held = {count.n for count in load_entry(dataset).counts if count.status == "verified"}
    assert {line.expected for line in result.lines} <= held | {None}, (
        "a number that was not verified is held against a copy"
    )


@pytest.mark.parametrize("dataset", sorted(CASES))
def test_layout_is_found_in_a_doubled_folder(dataset: str, tmp_path: Path) -> None:
    """Archives often unpack into a folder of their own name within a folder of their own name."""
    case = CASES[dataset]
    root = tmp_path / "X" / "X"
    case.build(root)
    resolved = read_dataset(load_entry(dataset), tmp_path / "X")
    _check(case, _rows(resolved, root))


def test_upper_case_names_are_found(tmp_path: Path) -> None:
    """Copies made on other systems change the case of names."""
    for name in ("train/normal/NORMAL-1-1.JPEG", "TEST/Drusen/drusen-2-1.Jpeg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    resolved = read_dataset(load_entry("oct2017"), tmp_path)
    assert sorted(resolved.records.columns["label"]) == ["DRUSEN", "NORMAL"]
    assert sorted(resolved.records.columns["split"]) == ["test", "train"]


def test_every_known_layout_has_a_case() -> None:
    """A dataset whose layout is documented is tested on it; the others are those whose files nobody has seen."""
    unknown = {name for name in dataset_ids() if not load_entry(name).layout}
    assert unknown == {"ebus", "muscle-fascicle-us", "oct-classification-li2019"}
    assert set(CASES) == set(dataset_ids()) - unknown


@pytest.mark.parametrize("dataset", ["ebus", "muscle-fascicle-us", "oct-classification-li2019"])
def test_unknown_layout_takes_any_image(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one.png", "two.TIF", "readme.txt"):
        (tmp_path / name).touch()
    resolved = read_dataset(load_entry(dataset), tmp_path)
    assert [Path(path).name for path in resolved.records.columns["path"]] == ["one.png", "two.TIF"]
