"""Promise: with --anonymous-names nothing that a verb writes or says holds a file's name; scores are the same."""

from __future__ import annotations

import json
import shutil
import zlib

import pytest
from pyarrow import parquet

from faults_helpers import ENCODER, PATIENT, PRETRAIN, TELLING, names_in, write_labelled
from frepa.errors import InputError
from frepa.images.anonymity import pseudonym
from frepa.images.hidden_names import HiddenNames, naming

_STEP = ["--max-steps=2", "--num-workers=0", "--quiet"]


@pytest.mark.parametrize("verb", ["segment", "classify", "detect"])
def test_heads_name_nothing_and_score_the_same(clinic, tmp_path, told, not_under_another_key, verb):
    source = clinic / ("classes" if verb == "classify" else "labelled")
    runs = [tmp_path / "named", tmp_path / "hidden"]
    more = ["--folds=2", "--features=last", "--crop-size=32"] if verb == "segment" else []
    for run, option in zip(runs, ([], ["--anonymous-names"])):
        said = told(verb, source, f"--out={run}", f"--encoder={ENCODER}", *_STEP, *more, *option)
    assert names_in(runs[0], "")
    assert names_in(runs[1], said.replace(str(clinic), "")) == []
    assert "clinic" not in said
    named, hidden = (json.loads((run / "results.json").read_text()) for run in runs)
    if verb == "segment":
        assert named["sets"]["labelled"]["test"] == hidden["sets"]["set-1"]["test"]
        assert named["sets"]["labelled"]["baselines"] == hidden["sets"]["set-1"]["baselines"]
    else:
        assert named["test"] == hidden["test"]
    assert [item["best_step"] for item in named["training"]] == [item["best_step"] for item in hidden["training"]]
    # The same cases in the same order, each by the hash that a store would call it by.
    lines = [(run / "cases.csv").read_text("utf-8").splitlines() for run in runs]
    assert len(lines[0]) == len(lines[1]) > 1
    first = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.png") if "masks" not in path.parts)
    assert {line.split(",")[verb == "segment"] for line in lines[1][1:]} <= {pseudonym(name) for name in first}
    scores = 4 + (verb == "segment")
    assert [line.split(",")[scores:] for line in lines[0]] == [line.split(",")[scores:] for line in lines[1]]
    not_under_another_key(verb, source, f"--config={runs[1] / 'config.yaml'}")
    # The file can be given as --config: it says everything but the source.
    again = told(verb, source, f"--config={runs[1] / 'config.yaml'}", "--resume", "--quiet")
    assert "is complete" in again


@pytest.mark.parametrize("verb", ["segment", "classify", "detect"])
def test_predictions_are_named_after_hashes(clinic, tmp_path, told, not_under_another_key, verb):
    source = clinic / ("classes" if verb == "classify" else "labelled")
    more = ["--features=last", "--crop-size=32"] if verb == "segment" else []
    told(verb, source, f"--out={tmp_path / 'head'}", f"--encoder={ENCODER}", *_STEP, *more, "--anonymous-names")
    words = ["predict", tmp_path / "head", clinic / "scans", "--num-workers=0", "--quiet", "--overlays"]
    said = told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    assert names_in(tmp_path / "hidden", said) == []
    told(*words, f"--out={tmp_path / 'named'}")
    named, hidden = (sorted((tmp_path / name).rglob("*.png")) for name in ("named", "hidden"))
    assert sorted(path.read_bytes() for path in named) == sorted(path.read_bytes() for path in hidden)
    assert len(hidden) >= 5
    done = (tmp_path / "hidden" / "done.jsonl").read_text()
    told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names", "--resume")
    assert (tmp_path / "hidden" / "done.jsonl").read_text() == done  # nothing was done twice
    not_under_another_key(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    # Scored on a labelled set: by the same numbers, and naming nothing either
    scored = ["evaluate", tmp_path / "head", source, "--num-workers=0", "--quiet", "--part=all"]
    said = told(*scored, f"--out={tmp_path / 'unseen'}", "--anonymous-names")
    assert names_in(tmp_path / "unseen", said) == []
    told(*scored, f"--out={tmp_path / 'seen'}")
    assert names_in(tmp_path / "seen", "")
    seen, unseen = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("seen", "unseen"))
    of, its = (seen["sets"]["labelled"], unseen["sets"]["set-1"]) if verb == "segment" else (seen, unseen)
    assert of["test"] == its["test"]
    assert seen["left_out"] == unseen["left_out"]
    if verb == "segment":
        seg = ["--format=dicom-seg", "--anonymous-names", f"--out={tmp_path / 'x'}"]
        assert "names the patient" in told(*words, *seg, code=2)


def test_embeddings_name_nothing_and_are_the_same(clinic, tmp_path, told, not_under_another_key):
    words = ["embed", clinic / "classes", f"--encoder={ENCODER}", "--image-size=32", "--num-workers=0", "--quiet"]
    for name, option in (("named", []), ("hidden", ["--anonymous-names"])):
        said = told(*words, f"--out={tmp_path / name}", *option)
    assert names_in(tmp_path / "named", "")
    assert names_in(tmp_path / "hidden", said) == []
    tables = [parquet.read_table(tmp_path / name / "embeddings.parquet") for name in ("named", "hidden")]
    assert list(map(pseudonym, tables[0]["name"].to_pylist())) == tables[1]["name"].to_pylist()
    # Folders of classes look like folders of patients.
    assert list(map(pseudonym, tables[0]["label"].to_pylist())) == tables[1]["label"].to_pylist()
    assert tables[0].drop_columns(["name", "label"]) == tables[1].drop_columns(["name", "label"])
    said = told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names", "--resume")
    assert "done already" in said
    not_under_another_key(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")


def test_pretraining_names_nothing_and_learns_the_same(clinic, tmp_path, told, not_under_another_key):
    words = ["pretrain", clinic / "scans", *PRETRAIN, "--max-steps=4", "--num-workers=0"]
    for name, option in (("named", []), ("hidden", ["--anonymous-names"])):
        said = told(*words, f"--out={tmp_path / name}", *option)
    assert names_in(tmp_path / "named", "")
    assert names_in(tmp_path / "hidden", said) == []
    assert pseudonym(f"{PATIENT} broken=1970.png") in (tmp_path / "hidden" / "skipped.csv").read_text()
    for file in ("metrics.jsonl", "encoder.safetensors"):
        assert (tmp_path / "named" / file).read_bytes() == (tmp_path / "hidden" / file).read_bytes()
    not_under_another_key(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    changed = tmp_path / "clinic of dr kim"
    shutil.copytree(clinic / "scans", changed)
    (changed / f"{PATIENT} new=1970.png").write_bytes(next(changed.glob("*0000=*")).read_bytes())
    words[1] = changed
    said = told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names", "--resume", code=2)
    assert "1 added (" in said
    assert names_in(tmp_path / "hidden", said) == []


def test_reports_and_lists_name_nothing(clinic, tmp_path, told):
    source = tmp_path / "clinic of dr kim"
    shutil.copytree(clinic / "scans", source / "train")
    shutil.copytree(clinic / "scans", source / "test")
    words = ["check", source, "--num-workers=0", "--quiet"]
    named = told(*words, f"--out={tmp_path / 'named'}")
    said = told(*words, f"--out={tmp_path / 'hidden'}", "--anonymous-names")
    assert names_in(tmp_path / "hidden", said) == []
    assert names_in(tmp_path / "named", named)
    tables = [parquet.read_table(tmp_path / name / "findings.parquet") for name in ("named", "hidden")]
    assert tables[0]["kind"].to_pylist() == tables[1]["kind"].to_pylist()
    assert list(map(pseudonym, tables[0]["file"].to_pylist())) == tables[1]["file"].to_pylist()
    assert tables[1].num_rows > 5
    words = ["prepare", source, "--num-workers=0", "--quiet", "--anonymous-names"]
    said = told(*words, f"--out={tmp_path / 'store'}")
    (tmp_path / "store.skipped.csv").rename(tmp_path / "store" / "beside.csv")
    assert pseudonym(f"test/{PATIENT} broken=1970.png") in (tmp_path / "store" / "beside.csv").read_text()
    assert names_in(tmp_path / "store", said) == []
    assert "contradict" in told(*words, "--keep-names", f"--out={tmp_path / 'x'}", code=2)


def test_what_ends_a_command_names_nothing(clinic, tmp_path, told):
    """Files of no matching names, a manifest of files that are not there, a mask of another size, nothing at all."""
    sets = tmp_path / "clinic of dr kim"
    hidden = [f"--encoder={ENCODER}", f"--out={tmp_path / 'out'}", "--anonymous-names", *_STEP]
    shutil.copytree(clinic / "labelled", sets / "a")
    mask = sorted((sets / "a" / "masks").iterdir())[0]
    shutil.copy(write_labelled(tmp_path / "large", count=1, side=48) / "masks" / "0.png", mask)
    shutil.copytree(clinic / "labelled", sets / "b")
    for path in (sets / "b" / "masks").iterdir():
        path.rename(path.with_name(f"{PATIENT} {zlib.crc32(path.name.encode()):x}a=1970.png"))
    rows = [f"{PATIENT} {number}=1970.png,{PATIENT} {number}=1970.gif" for number in range(4)]
    (sets / "m.csv").write_text("\n".join(["image,mask", *rows]))
    (sets / "empty").mkdir()
    for name in ("a", "b", "m.csv", "empty", f"{PATIENT}=1970.tif"):
        said = told("segment", sets / name, *hidden, code=2)
        assert names_in(tmp_path / "none", said) == [], said
    assert not (tmp_path / "out").exists()


def test_what_nobody_foresaw_names_nothing(clinic):
    path = next((clinic / "scans").iterdir())
    with pytest.raises(OSError, match=r"[0-9a-f]{16}") as caught, naming(True, [str(clinic / "scans")]):
        open(path / "x")  # noqa: SIM115
    assert not any(word in str(caught.value) for word in TELLING)


def test_sentences_keep_ordinary_words(tmp_path):
    for name in ("a.png", "seg.png", "1234567.nii.gz", "x/21_training.tif", "cats and dogs.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = HiddenNames([str(tmp_path)], keep=[str(tmp_path / "out")])
    assert names.said("a seg of 1234567 cats") == "a seg of 1234567 cats"
    assert names.said("a.png, 1234567.nii.gz: cats and dogs.png") == (
        f"{pseudonym('a.png')}, {pseudonym('1234567.nii.gz')}: {pseudonym('cats and dogs.png')}"
    )
    hashed = pseudonym("x/21_training.tif")
    assert names.said(f"{tmp_path}/x/21_training.tif and 21_training.tif.") == f"{hashed} and {hashed}."
    assert names.said("'21_training', aa.png") == f"{hashed}, aa.png"
    assert names.said(f"{tmp_path}: go on ({tmp_path / 'out'})") == f"SOURCE: go on ({tmp_path / 'out'})"
    with pytest.raises(InputError, match=f"^{hashed} is odd$"), naming(True, [str(tmp_path)]):
        raise InputError("x/21_training.tif is odd")
