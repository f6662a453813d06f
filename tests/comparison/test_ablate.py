"""Ablations: rows from one recipe, pretrained once each, then compared."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_encoders  # noqa: F401 (registers them)
from frepa.comparison.ablations import ROWS, read_ablation
from frepa.errors import InputError
from frepa.options import groups
from frepa.pretraining.methods.frepa import Frepa
from frepa.verbs import _ablating
from frepa.verbs.ablate import ablate
from frepa.verbs.pretrain import pretrain
from tiny_runs import masked_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return masked_set(tmp_path_factory.mktemp("sets") / "balls", count=10)


def study_of(sets: Path) -> dict[str, Any]:
    options = {"encoder": "tiny_for_tests", "image_size": 32, "batch_size": 4, "max_steps": 2, "lr": 1e-3}
    rows = {"default": {}, "w/o HFL": {"method": {"hfl_weight": 0.0}}}
    return {
        "pretrain": {"source": str(sets / "images"), "options": options, "rows": rows},
        "encoders": {"untrained": "random:tiny_for_tests"},
        "tasks": {"balls": {"segment": str(sets), "crop_size": 32}},
        "resamples": 200,
    }


def run(folder: Path, study: dict[str, Any], **options: Any) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return Path(ablate(str(folder / "study.yaml"), out=str(folder / "out"), quiet=True, threads=1, **options))


def test_rows_are_pretrained_once_and_compared(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)  # slow, and test_compare.py has one
    made = []

    @functools.wraps(pretrain)
    def counted(*args: Any, **options: Any) -> Any:
        made.append(options.get("method", {}))
        return pretrain(*args, **options)

    monkeypatch.setattr(_ablating, "pretrain", counted)
    study = study_of(sets)
    out = run(tmp_path, study)
    assert [dict(method).get("hfl_weight") for method in made] == [None, 0.0]
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        rows = [row["row"] for row in csv.DictReader(file) if row["measure"] == "dsc"]
    assert rows == ["default", "w/o HFL", "untrained"]
    with open(out / "tests.csv", encoding="utf-8", newline="") as file:
        assert {row["b"] for row in csv.DictReader(file)} == {"default"}
    config = yaml.safe_load(next(out.glob("rows/w-o-hfl-*/config.yaml")).read_text())
    assert config["method"]["hfl_weight"] == 0
    run(tmp_path, study, resume=True)
    assert len(made) == 2
    study["pretrain"]["rows"]["w/o HFL"]["method"]["gradient_weight"] = 0.5
    run(tmp_path, study, resume=True)
    assert len(made) == 3  # the changed row alone


def test_table_9_takes_one_part_away_in_each_row():
    """Seven rows beside the method itself, every one an option that its paper preset has otherwise."""
    rows = ROWS["table9"]
    assert len(rows) == 8
    preset = Frepa.presets["paper"]["method"]
    for row, change in rows.items():
        for option, value in change.get("method", {}).items():
            assert value != preset.get(option, getattr(Frepa, option)), row
    known = {option.name: option for group in groups(pretrain) for option in group.options if "." not in option.name}
    for name, named in ROWS.items():
        for one in read_ablation({"pretrain": {"source": "x", "rows": name}}, "study", known):
            Frepa(**{key: value for key, value in one.options.get("method", {}).items() if key != "name"})
        assert len(
            {one.folder for one in read_ablation({"pretrain": {"source": "x", "rows": name}}, "s", known)}
        ) == len(named)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("pretrain"), "no key pretrain"),
        (lambda s: s["pretrain"].update(rows="table8"), r"rows: 'table8' is not known\. Did you mean table9"),
        (lambda s: s["pretrain"].update(sauce="x"), "sauce is no word of it. Did you mean source"),
        (lambda s: s["pretrain"].update(source=""), "source: expected a folder"),
        (
            lambda s: s["pretrain"]["options"].update(max_stebs=3),
            "max_stebs is no option of pretrain. Did you mean max",
        ),
        (lambda s: s["pretrain"]["options"].update(out="x"), "out is decided by the study itself"),
        (lambda s: s["pretrain"].update(seeds=0), "seeds: expected a number from 1"),
        (lambda s: s["tasks"]["balls"].update(segment="nowhere"), "task balls: nowhere"),
    ],
)
def test_wrong_ablations_are_refused_before_anything_is_pretrained(sets, tmp_path, change, said):
    study = study_of(sets)
    change(study)
    with pytest.raises(InputError, match=said):
        run(tmp_path, study)
    assert not (tmp_path / "out").exists()
