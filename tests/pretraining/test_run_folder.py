from __future__ import annotations

import json

import pytest
import yaml

from frepa.errors import InputError
from frepa.pretraining.run_folder import RunFolder

CONFIG = {"source": "a", "lr": 0.1, "schedule": "cosine", "epochs": 2, "num_workers": 2}


def _open(root, config=CONFIG, *, resume=False, overwrite=False) -> RunFolder:
    with RunFolder(root) as run:
        run.open(config, config["source"], resume=resume, overwrite=overwrite)
    return run


def test_a_run_is_never_overwritten_unasked(tmp_path):
    run = _open(tmp_path / "run")
    assert yaml.safe_load(run.config.read_text()) == CONFIG
    with pytest.raises(InputError, match="--resume to continue it, --overwrite to replace"):
        _open(tmp_path / "run")
    with pytest.raises(InputError, match="contradict"):
        _open(tmp_path / "run", resume=True, overwrite=True)
    with RunFolder(tmp_path / "run") as run:
        run.open(CONFIG, CONFIG["source"], resume=True, overwrite=False)
        run.append(run.metrics, [{"step": 1}])
    _open(tmp_path / "run", overwrite=True)
    assert not run.metrics.exists()


def test_a_folder_of_something_else_is_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a run of this program"):
            _open(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    with pytest.raises(InputError, match="this is a file"):
        _open(tmp_path / "thesis.txt")


def test_resume_wants_the_same_options_and_names_the_changed(tmp_path):
    _open(tmp_path / "run", resume=True)  # a scheduler's first start has --resume too
    _open(tmp_path / "run", CONFIG | {"num_workers": 0}, resume=True)
    with pytest.raises(InputError, match=r"lr: was 0\.1, now 0\.2"):
        _open(tmp_path / "run", CONFIG | {"lr": 0.2}, resume=True)
    with pytest.raises(InputError, match="epochs"):
        _open(tmp_path / "run", CONFIG | {"epochs": 3}, resume=True)
    constant = CONFIG | {"schedule": "constant"}
    _open(tmp_path / "other", constant)
    longer = _open(tmp_path / "other", constant | {"epochs": 3}, resume=True)
    assert yaml.safe_load(longer.config.read_text())["epochs"] == 3


def test_a_run_does_not_become_its_own_source(tmp_path):
    with pytest.raises(InputError, match="lies inside the source"):
        _open(tmp_path / "runs" / "a", CONFIG | {"source": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
    _open(tmp_path / "runs" / "a", CONFIG | {"source": f"{tmp_path}/*.png"})


def test_states_of_somebody_else_are_not_continued(tmp_path):
    run = _open(tmp_path / "run")
    run.checkpoints.folder.mkdir()
    run.checkpoints.path(4).write_bytes(b"of another run")
    with pytest.raises(InputError, match="states that this run did not write"):
        _open(tmp_path / "run", overwrite=True)


def test_logs_are_cut_back_to_the_state(tmp_path):
    run = RunFolder(tmp_path)
    run.append(run.metrics, ({"step": step} for step in range(1, 6)))
    with open(run.metrics, "a") as file:
        file.write('{"step": 6, "los')  # a kill in the middle of a line
    run.cut_logs(3)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
