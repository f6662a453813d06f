"""Promise: with --anonymous-names studies, analyses and what the catalogue says name no file; exports never do."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import frepa
from faults_helpers import ENCODER, PATIENT, PRETRAIN, TELLING, names_in
from frepa.images.anonymity import pseudonym


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study_of(clinic: Path, folder: Path, **more: Any) -> Path:
    study = {
        "encoders": {"small": ENCODER},
        "tasks": {"vessels": {"segment": [str(clinic / "labelled")], "crop_size": 32}},
        "baselines": {"guide": {"polarities": ["frangi_dark"], "scales": ["1-2-3"]}},
        "resamples": 200,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def test_comparisons_name_nothing_and_say_the_same(clinic, tmp_path, told, not_under_another_key):
    words = ["compare", study_of(clinic, tmp_path), "--quiet", "--threads=1"]
    told(*words, f"--out={tmp_path / 'named'}")
    said = told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    assert names_in(tmp_path / "named", "")
    assert names_in(tmp_path / "hidden", said) == []
    assert (tmp_path / "named/table.csv").read_text() == (tmp_path / "hidden/table.csv").read_text()
    assert list((tmp_path / "hidden/overlays").iterdir())
    cases, hashes = (rows_of(tmp_path / name / "cases.csv") for name in ("named", "hidden"))
    by_case = {pseudonym(path.relative_to(clinic / "labelled").as_posix()): path.stem.replace("=", "_")
               for path in (clinic / "labelled" / "images").iterdir()}  # fmt: skip
    assert [by_case[row["case"]] for row in hashes] == [row["case"] for row in cases]
    assert {row["set"] for row in hashes} == {"set-1"}
    assert [row["value"] for row in hashes] == [row["value"] for row in cases]
    # Nothing is computed again, and a cell that was cut off goes on although it does not know its source.
    cells = sorted((tmp_path / "hidden/cells").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in cells]
    told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names", "--resume")
    not_under_another_key(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    assert [path.stat().st_mtime_ns for path in cells] == before
    # What does not fit is told without names, and only the study itself decides
    said = told("compare", study_of(clinic, tmp_path, tasks={"vessels": {"segment": str(clinic / "scans")}}),
                f"--out={tmp_path / 'none'}", "--anonymous-names", code=2)  # fmt: skip
    assert names_in(tmp_path / "none", said) == []
    own = {"vessels": {"segment": "x", "anonymous_names": True}}
    assert "decided by the study" in told("compare", study_of(clinic, tmp_path, tasks=own), "--out=x", code=2)


def test_ablations_name_nothing(clinic, tmp_path, told):
    options = {"encoder": "timm:test_convnext", "image_size": 32, "batch_size": 4, "max_steps": 1, "guide": "none",
               "val_images": 0, "method": {"spectrum_patch": 4, "image_patch": 8}}  # fmt: skip
    pretrain = {"source": str(clinic / "scans"), "options": options, "rows": {"default": {}}}
    told("ablate", study_of(clinic, tmp_path, pretrain=pretrain, encoders={}, baselines=[]), "--quiet", "--threads=1",
         f"--out={tmp_path / 'hidden'}", "--anonymous-names")  # fmt: skip
    assert names_in(tmp_path / "hidden", "") == []
    assert pseudonym(f"{PATIENT} broken=1970.png") in next((tmp_path / "hidden/rows").glob("*/skipped.csv")).read_text()
    kept = yaml.safe_load((tmp_path / "hidden/study.yaml").read_text())
    assert kept["pretrain"]["source"] == kept["tasks"]["vessels"]["segment"] == "SOURCE"
    assert kept["pretrain"]["options"] == options


@pytest.mark.parametrize("kind", ["histograms", "structures"])
def test_analyses_name_nothing_and_find_the_same(clinic, tmp_path, told, not_under_another_key, monkeypatch, kind):
    """The folder is named as one does who stands beside it: a word like any other."""
    shutil.copytree(clinic / ("scans" if kind == "histograms" else "labelled"), tmp_path / TELLING[-1])
    monkeypatch.chdir(tmp_path)
    words = ["analyze", kind, TELLING[-1], "--num-workers=0", "--quiet", "--images=2"]
    words += ["--kind.corruptions=zero patches"] if kind == "histograms" else [f"--encoder={ENCODER}"]
    told(*words, "--out=named")
    said = told(*words, "--out=hidden", "--anonymous-names")
    assert names_in(Path("named"), "")
    assert names_in(Path("hidden"), said) == []
    named, hidden = (json.loads(Path(name, "results.json").read_text()) for name in ("named", "hidden"))
    assert named["numbers"] == hidden["numbers"]
    not_under_another_key(*words, "--out=hidden", "--anonymous-names")
    again = told(*words[:2], TELLING[-1], "--config=hidden/config.yaml", "--out=again", "--quiet")
    assert "again" in again
    said = told("analyze", kind, TELLING[-1], "--dims=3", *words[3:], "--out=none", "--anonymous-names", code=2)
    assert names_in(Path("none"), said) == []


def test_a_word_is_a_source_too(clinic, tmp_path, told, monkeypatch):
    shutil.copytree(clinic / "scans", tmp_path / TELLING[-1])
    monkeypatch.chdir(tmp_path)
    said = told("embed", TELLING[-1], f"--encoder={ENCODER}", "--image-size=32", "--num-workers=0", "--quiet",
                "--out=hidden", "--anonymous-names")  # fmt: skip
    assert names_in(Path("hidden"), said) == []


def test_a_copy_is_verified_without_names(tmp_path, told):
    folder = tmp_path / TELLING[-1]
    for place in ("DRIVE/training/images/21_training.tif", f"DRIVE/{PATIENT}/{PATIENT} 1.png", f"{PATIENT} 2.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / place)
    assert names_in(tmp_path / "none", told("datasets", "verify", "drive", folder))
    said = told("datasets", "verify", "drive", folder, "--anonymous-names")
    assert names_in(tmp_path / "none", said) == []
    assert "21_training" not in said
    assert pseudonym("DRIVE/training/images/21_training.tif") in said
    said = told("datasets", "verify", "drive", folder, "--strict", "--anonymous-names", code=2)
    assert names_in(tmp_path / "none", said) == []
    lists = told("datasets", "list") + told("datasets", "show", "drive") + told("datasets", "describe-none", code=2)
    assert names_in(tmp_path / "none", lists) == []


@pytest.mark.parametrize("to", ["timm", "torch"])
def test_exports_name_no_file_nor_the_place_of_the_run(clinic, tmp_path, told, to):
    """Of an encoder that learnt from files with names, in a folder with a name; there is nothing to hide."""
    run = tmp_path / TELLING[-1] / f"{PATIENT}=1970"
    told("pretrain", clinic / "scans", *PRETRAIN, "--max-steps=1", "--num-workers=0", f"--out={run}")
    assert names_in(run, "")
    said = told("export", run, "--to", to, f"--out={tmp_path / 'out'}")
    assert names_in(tmp_path / "out", said) == []
    assert frepa.__version__ in (tmp_path / "out/export.json").read_text()
