"""What verbs give back in Python, and runs that carry their encoder with them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.trained import load_head
from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.reference import weights_hash
from frepa.errors import InputError
from frepa.verbs._result import RunResult
from frepa.verbs.check import check
from frepa.verbs.embed import embed
from frepa.verbs.predict import predict
from frepa.verbs.prepare import prepare
from tiny_runs import ENCODER, QUICK, classifying, masked_set, segmenting


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return segmenting(tmp_path_factory.mktemp("result"))


def test_it_stands_for_its_folder(run: RunResult) -> None:
    assert isinstance(run, RunResult)
    assert Path(run) == run.folder == Path(os.fspath(run))
    assert str(run) == str(run.folder)
    assert run == run.folder
    assert (run / "results.json").is_file()
    assert os.listdir(run) == os.listdir(run.folder)
    assert run.name == "run"
    with open(run / "config.yaml") as file:
        assert "encoder" in file.read()
    assert copy.deepcopy(run) == pickle.loads(pickle.dumps(run)) == run


def test_scores_are_those_of_the_file(run: RunResult) -> None:
    rows = {(row["of"], row["score"]): row for row in run.scores.to_pylist()}
    test = json.loads((run / "results.json").read_text())["sets"]["set"]["test"]
    assert rows["set", "dsc"]["value"] == test["dsc"]["mean"]
    assert rows["set", "dsc"]["std"] == test["dsc"]["std"]
    assert any(of == "set, no encoder" for of, _ in rows)
    page = run._repr_html_()
    assert f"{test['dsc']['mean']:.4f} ± {test['dsc']['std']:.4f}" in page
    assert "report</a>" in page


def test_its_report_opens(run: RunResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda where: shown.append(where) or True)
    assert run.report.open()
    assert shown == [(run / "report.html").absolute().as_uri()]
    assert Path(run.report) == run / "report.html"
    with pytest.raises(FileNotFoundError, match=r"has no report\.html"):
        _ = RunResult(tmp_path).report


def test_scores_of_a_classifier_and_of_a_folder_with_none(tmp_path: Path) -> None:
    run = classifying(tmp_path)
    rows = {(row["of"], row["score"]): row["value"] for row in run.scores.to_pylist()}
    results = json.loads((run / "results.json").read_text())
    assert rows["", "auc"] == results["test"]["auc"]["value"]
    assert rows["no encoder, majority", "auc"] == 0.5
    assert RunResult(tmp_path / "set").scores.num_rows == 0


@pytest.mark.parametrize("folds", [None, 2])
def test_a_bundle_works_wherever_it_is_moved(tmp_path: Path, folds: int | None) -> None:
    """The encoder is a file of its own, which is gone afterwards."""
    save_encoder(tmp_path / "encoder", load_encoder("random:tiny_for_tests,seed=3"))
    source = masked_set(tmp_path / "set")
    from frepa.verbs.segment import segment

    how = {"head": "linear", "crop_size": 32, "folds": folds, **QUICK}
    run = segment([str(source)], encoder=str(tmp_path / "encoder"), out=str(tmp_path / "run"), bundle=True, **how)
    image = source / "images/2.png"
    before = load_head(run).predict(image).probabilities
    shutil.move(run, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "encoder")
    head = load_head(tmp_path / "elsewhere")
    assert weights_hash(head.models[0].encoder) == head.reference.weights
    assert (head.predict(image).probabilities == before).all()
    assert load_encoder(tmp_path / "elsewhere").name == "tiny_for_tests"
    # Without the bundle the head says what is missing.
    (tmp_path / "elsewhere/encoder.safetensors").unlink()
    with pytest.raises(InputError, match="The head was trained on this encoder; if it was moved, give its place"):
        load_head(tmp_path / "elsewhere")


def test_a_bundle_of_a_slice_transfer_holds_its_2d_encoder(tmp_path: Path) -> None:
    from frepa.verbs.segment import segment

    save_encoder(tmp_path / "encoder", load_encoder("random:tiny_for_tests"))
    source = masked_set(tmp_path / "set", size=(6, 12, 14))
    encoder = f"slices:{tmp_path / 'encoder'},rounds=1,width=8,heads=2"
    run = segment([str(source)], encoder=encoder, out=str(tmp_path / "run"), bundle=True, **QUICK)
    before = load_head(run).predict(source / "imagesTr/1.npy").probabilities
    shutil.rmtree(tmp_path / "encoder")
    assert (load_head(run).predict(source / "imagesTr/1.npy").probabilities == before).all()


def test_every_verb_gives_back_what_it_counted(run: RunResult, tmp_path: Path) -> None:
    """Where nothing is scored: predict, check and prepare; embed of images without classes."""
    images = tmp_path / "images"
    shutil.copytree(Path(run).parent / "set/images", images)
    (images / "broken.png").write_bytes(b"no image")
    shutil.copy(images / "1.png", images / "twice.png")
    how = {"quiet": True, "num_workers": 0}
    predicted = predict(str(run), [str(images)], out=str(tmp_path / "predicted"), overlays=True, **how)
    checked = check(str(images), out=str(tmp_path / "checked"), **how)
    packed = prepare(str(images), out=str(tmp_path / "packed"), **how)
    embedded = embed(str(images), encoder=ENCODER, out=str(tmp_path / "embedded"), image_size=32, **how)
    assert counted(predicted) == {"scans": 9, "left_out": 1}
    assert counted(embedded) == {"images": 9, "left_out": 1}
    assert counted(checked)["duplicate"] >= 1
    assert counted(packed)["records"] == 9
    assert counted(packed)["bytes"] == sum(path.stat().st_size for path in (packed / "shards").iterdir())
    assert check(str(images), **how) is None
    for one in (predicted, checked, embedded):
        assert one.report.path.is_file()
        assert "report</a>" in one._repr_html_()
    assert ">9<" in packed._repr_html_()
    page = (predicted / "report.html").read_text()
    assert page.count("<img") == 9
    assert "broken.png" in page
    assert "pixels_255" in page


def counted(run: RunResult) -> dict[str, float]:
    rows = run.scores.to_pylist()
    assert {row["of"] for row in rows} == {"count"}
    return {row["score"]: row["value"] for row in rows}
