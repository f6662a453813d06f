from __future__ import annotations

import json

import pytest
import yaml

from frepa.errors import InputError
from frepa.pretraining.run_folder import RunFolder

CONFIG = {"source": "a", "lr": 0.1, "schedule": "cosine", "epochs": 2, "num_workers": 2}


def test_a_run_is_never_overwritten_unasked(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.open(CONFIG, resume=False, overwrite=False)
    assert yaml.safe_load(run.config.read_text()) == CONFIG
    with pytest.raises(InputError, match="--resume to continue it, --overwrite to replace"):
        run.open(CONFIG, resume=False, overwrite=False)
    with pytest.raises(InputError, match="contradict"):
        run.open(CONFIG, resume=True, overwrite=True)
    run.metrics.write_text("old\n")
    run.open(CONFIG, resume=False, overwrite=True)
    assert not run.metrics.exists()


def test_a_folder_of_something_else_is_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a run of this program"):
            RunFolder(tmp_path).open(CONFIG, resume=False, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    with pytest.raises(InputError, match="this is a file"):
        RunFolder(tmp_path / "thesis.txt").open(CONFIG, resume=False, overwrite=False)


def test_resume_wants_the_same_options_and_names_the_changed(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.open(CONFIG, resume=True, overwrite=False)  # a scheduler's first start has --resume too
    run.open(CONFIG | {"num_workers": 0}, resume=True, overwrite=False)
    with pytest.raises(InputError, match=r"lr: was 0\.1, now 0\.2"):
        run.open(CONFIG | {"lr": 0.2}, resume=True, overwrite=False)
    with pytest.raises(InputError, match="epochs"):
        run.open(CONFIG | {"epochs": 3}, resume=True, overwrite=False)
    constant = CONFIG | {"schedule": "constant"}
    longer = RunFolder(tmp_path / "other")
    longer.open(constant, resume=False, overwrite=False)
    longer.open(constant | {"epochs": 3}, resume=True, overwrite=False)
    assert yaml.safe_load(longer.config.read_text())["epochs"] == 3


def test_logs_are_cut_back_to_the_state(tmp_path):
    run = RunFolder(tmp_path)
    run.append(run.metrics, ({"step": step} for step in range(1, 6)))
    with open(run.metrics, "a") as file:
        file.write('{"step": 6, "los')  # a kill in the middle of a line
    run.cut_logs(3)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
