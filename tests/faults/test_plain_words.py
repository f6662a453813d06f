"""Promise: wrong input is one sentence for a person and exit code 2; what nobody foresaw is one too, with code 1."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faults_helpers import ENCODER, PRETRAIN, write_classes, write_images, write_labelled
from frepa.cli import main
from frepa.encoders.files import load_encoder, save_encoder
from frepa.errors import InputError
from frepa.pretraining.journal import Journal
from frepa.states import DamagedFile, load_tree, save_tree

_VERBS = ("pretrain", "segment", "classify", "detect", "check", "prepare", "demo")
_STEP = ["--max-steps=1", "--num-workers=0", "--quiet"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_images(folder / "scans")
    write_labelled(folder / "labelled")
    write_classes(folder / "classes", count=3)
    return folder


@pytest.fixture
def said(capsys) -> Callable[..., str]:
    """Run a command that is to be refused; what it said, without a traceback and on no line of its own making."""

    def run(*words: object, code: int = 2) -> str:
        found = main([str(word) for word in words])
        err = capsys.readouterr().err
        assert found == code, err
        assert "Traceback" not in err
        assert code == 1 or "does not know how to handle" not in err
        return err

    return run


def command(verb: str, sets: Path, source: object = None) -> list[str]:
    """A short run of a verb, without --out."""
    folder = {"segment": "labelled", "detect": "labelled", "classify": "classes"}.get(verb, "scans")
    text = str(sets / folder if source is None else source)
    return {
        "pretrain": ["pretrain", text, *PRETRAIN, "--max-steps=1", "--num-workers=0"],
        "check": ["check", text, "--num-workers=0", "--quiet"],
        "prepare": ["prepare", text, "--num-workers=0", "--quiet"],
        "demo": ["demo", "--quiet"],
    }.get(verb, [verb, text, f"--encoder={ENCODER}", *_STEP])


@pytest.mark.parametrize("verb", [verb for verb in _VERBS if verb != "demo"])
def test_sources_that_are_none(sets, tmp_path, said, monkeypatch, verb):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    out = f"--out={tmp_path / 'out'}"
    assert "empty" in said(*command(verb, sets, ""), out)
    for text in ("loop", "no/such", "x" * 5000, "a\0b"):
        monkeypatch.chdir(tmp_path)
        assert said(*command(verb, sets, text), out).strip()
    monkeypatch.chdir(tmp_path / "empty")
    assert said(*command(verb, sets, "."), out).strip()
    assert not (tmp_path / "out").exists()


def test_links_that_lead_back_are_followed_once(sets, tmp_path, capsys):
    folder = tmp_path / "scans"
    shutil.copytree(sets / "scans", folder)
    (folder / "again").symlink_to(".")
    assert main(["check", str(folder), "--num-workers=0", "--quiet"]) == 0
    assert "12 scans, 0 unreadable" in capsys.readouterr().out


def test_absolute_names_in_a_manifest_end_a_check_too(sets, tmp_path, capsys):
    rows = "".join(f"{path}\n" for path in sorted((sets / "scans").iterdir()))
    (tmp_path / "m.csv").write_text(f"path\n{rows}")
    assert main(["check", str(tmp_path / "m.csv"), "--num-workers=0", "--quiet"]) == 0
    assert "12 scans" in capsys.readouterr().out


@pytest.mark.parametrize("verb", _VERBS)
@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("/", "nothing in it will be touched"),
        ("", "--out is empty"),
        ("x" * 300, "longer than the system allows"),
        ("a/" * 3000 + "b", "longer than the system allows"),
        ("a\0b", "no folder can have this name"),
        ("/proc/frepa", "cannot be written there"),
        ("/dev/null/a", "cannot be written there"),
        ("loop", "loop"),
    ],
)
def test_places_that_nothing_can_be_written_to(sets, tmp_path, said, monkeypatch, verb, out, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for more in ([], ["--overwrite"]):
        assert expected in said(*command(verb, sets), f"--out={out}", *more)


@pytest.mark.parametrize("verb", ["pretrain", "classify", "check", "prepare"])
def test_a_disk_that_may_only_be_read(sets, tmp_path, said, verb):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=4096", "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        for out in (disk, disk / "run"):
            assert "cannot be written there" in said(*command(verb, sets), f"--out={out}")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_folders_without_permission(sets):
    """In a process of an ordinary user, since nothing is closed to the one who may do everything."""
    with tempfile.TemporaryDirectory() as name:
        top, closed, shut = Path(name), Path(name, "closed"), Path(name, "shut")
        shutil.copytree(sets / "scans", closed / "inner")
        shutil.copy(sets / "scans" / "00.png", closed)
        shut.mkdir()
        quiet = ["--num-workers=0", "--quiet"]
        # Once with permission, so that the process of the other user finds everything imported.
        assert main(["check", str(closed), *quiet]) == 0
        assert main(["prepare", str(closed), *quiet, f"--out={top / 'store'}"]) == 0

        def try_all(pipe: Any) -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            codes = [main(["check", str(folder), *quiet]) for folder in (closed / "inner", closed)]
            pipe.send([*codes, main(["prepare", str(closed), *quiet, f"--out={shut / 'store'}"])])

        top.chmod(0o755)
        (closed / "inner").chmod(0)
        shut.chmod(0o555)
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=try_all, args=(there,))
        process.start()
        try:
            assert here.poll(60)
            assert here.recv() == [2, 0, 2]  # a closed folder inside is listed among what cannot be read
        finally:
            process.join(10)
            (closed / "inner").chmod(0o755)


@pytest.mark.parametrize("name", ["s3:no,where=1", "~nobody"])
def test_names_that_libraries_take_for_addresses_are_folders(sets, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main([*command("check", sets), f"--out={name}"]) == 0
    assert (tmp_path / name / "findings.parquet").is_file()
    monkeypatch.chdir(tmp_path / name)
    assert main([*command("check", sets, "findings.parquet"), "--out=again"]) == 2  # it is read, and has no paths


_CELLS: dict[str, Any] = {
    "lists": lambda text: [text],
    "records": lambda text: {"a": text},
    "bytes": lambda text: text.encode(),
}


@pytest.mark.parametrize("kind", _CELLS)
@pytest.mark.parametrize("column", ["path", "label", "group", "dim", "mask"])
def test_columns_of_a_manifest_that_are_no_text(sets, tmp_path, said, kind, column):
    names = [str(path) for path in sorted((sets / "scans").iterdir())]
    columns = {"path": names, "label": ["a", "b"] * 6, "mask": names}
    columns[column] = [_CELLS[kind](str(cell)) for cell in columns.get(column, ["2"] * 12)]
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    for verb in ("check", "pretrain", "classify", "prepare"):
        found = said(*command(verb, sets, tmp_path / "m.parquet"), f"--out={tmp_path / 'out'}")
        assert f"the column {column!r} holds" in found
    if column in ("mask", "group"):
        parquet.write_table(pa.table({"image": names, **columns}), tmp_path / "m.parquet")
        found = said(*command("segment", sets, tmp_path / "m.parquet"), f"--out={tmp_path / 'out'}")
        assert f"the column {column!r} holds" in found


def test_columns_that_are_there_twice(sets, tmp_path, said):
    names = [str(path) for path in sorted((sets / "scans").iterdir())]
    twice = pa.Table.from_arrays([pa.array(names)] * 2, names=["path", "path"])
    parquet.write_table(twice, tmp_path / "p.parquet")
    for file, header in (
        ("p", "path,path"),
        ("l", "path,label,label"),
        ("i", "image,mask,mask"),
        ("b", "path,X min,x_min"),
    ):
        (tmp_path / f"{file}.csv").write_text(header + "\n" + f"{names[0]},{names[0]},{names[0]}\n" * 3)
    out = f"--out={tmp_path / 'out'}"
    for verb, file in (("check", "p.parquet"), ("pretrain", "p.csv"), ("classify", "l.csv"), ("segment", "i.csv")):
        if file == "p.csv":
            (tmp_path / file).write_text("path,path\n" + f"{names[0]},{names[1]}\n")
        assert "2 columns are called" in said(*command(verb, sets, tmp_path / file), out)
    assert "2 columns are called 'xmin'" in said(*command("detect", sets, tmp_path / "b.csv"), out)


_NUMBERS = [
    *((f"--devices={text}", "--devices") for text in ("-1", "0", "99", "0,1", "0,", "x", "1.5", "9" * 30)),
    *((f"--seed={text}", "a whole number") for text in ("-1", "9" * 30, "1.5")),
    *((f"--image-size={text}", "--image-size") for text in ("1000000", "0", "-5", "9" * 30)),
    ("--precision=fp16", "fp16 needs a GPU"),
    *((f"--method.spectrum-patch={text}", "spectrum") for text in ("16", "0", "-1", "1000000")),
    *((f"--method.image-patch={text}", "patch") for text in ("64", "0")),
    ("--encoder=convnext_atto,output_stride=4", "8, 16, 32 are possible"),
    ("--encoder=timm:test_convnext,output_stride=x", "8, 16, 32 are possible"),
    ("--encoder=vit_tiny,patch_size=0", "patch_size=0"),
    ("--guide=frangi:1000000", "guide"),
    ("--max-steps=99999999999999999", "more than a run can have"),
    ("--epochs=1e300", "more than a run can have"),
    ("--batch-size=10000000", "of memory"),
    ("--start-from=", "The encoder is empty"),
    ("--method=:", "cannot be imported"),
]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused here is possible with a GPU")
@pytest.mark.parametrize(("option", "expected"), _NUMBERS)
def test_options_out_of_range(sets, tmp_path, said, option, expected):
    words = [word for word in command("pretrain", sets) if option[:9] == "--epochs=" or "--max-steps" not in word]
    words = [word for word in words if "--max-steps" not in word] if "epochs" in option else command("pretrain", sets)
    assert expected in said(*words, option, f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists() or expected == "of memory"


_HEADS = [
    *((f"--seed={text}", "a whole number") for text in ("-1", "9" * 30)),
    *((f"--image-size={text}", "--image-size") for text in ("1000000", "0")),
    ("--precision=fp16", "--precision fp16"),
    ("--batch-size=1000000000", "of memory"),
    ("--epochs=1e300", "more than a run can have"),
    ("--encoder=random:convnext_atto,output_stride=4", "8, 16, 32 are possible"),
    ("--encoder=random:vit_tiny,seed=x", "seed=x"),
    ("--encoder=", "The encoder is empty"),
    ("--encoder=timm:test_vit@/etc/passwd", "cannot be read"),
    ("--encoder=timm:test_vit@x,y=3", "y"),
    ("--encoder=/dev/null", "was not found"),
]


@pytest.mark.parametrize("verb", ["segment", "classify", "detect"])
@pytest.mark.parametrize(("option", "expected"), _HEADS)
def test_options_of_heads_out_of_range(sets, tmp_path, said, verb, option, expected):
    words = [word for word in command(verb, sets) if "epochs" not in option or "--max-steps" not in word]
    assert expected in said(*words, option, f"--out={tmp_path / 'out'}")


def test_descriptions_of_encoders_that_describe_none(tmp_path):
    from frepa.encoders.registry import build_encoder

    folder = tmp_path / "encoder"
    save_encoder(folder, build_encoder("timm:test_convnext", dims=2))
    with safe_open(folder / "encoder.safetensors", framework="pt") as file:
        whole = json.loads(file.metadata()["frepa"])
    weights = load_file(folder / "encoder.safetensors")
    texts = ["[]", "3", '"x"', "null", "{", "{}", "[" * 5000, '{"encoder": 5}', '{"encoder": {}}']
    others: tuple[Any, ...] = (None, -1, 1e300, "x", [], {}, {"a": 1}, [1, 2])
    texts += [json.dumps({**whole, key: other}) for key in whole for other in others]
    texts += [
        json.dumps({**whole, "encoder": {**whole["encoder"], key: other}})
        for key in whole["encoder"]
        for other in others
    ]
    refused = []
    for text in texts:
        save_file(weights, tmp_path / "e.safetensors", metadata={"frepa": text})
        try:
            load_encoder(tmp_path / "e.safetensors")
        except InputError as error:
            refused.append(str(error))
    assert all(str(tmp_path / "e.safetensors") in text for text in refused)
    assert len(refused) >= 9 + 6
    for header in (b"[]", b"{", b"", b'"x"', b"{}"):
        (tmp_path / "raw.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(InputError):
            load_encoder(tmp_path / "raw.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_encoder(tmp_path / "raw.safetensors")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(3)], torch.zeros(3), 5, None, {}, {"a": 1}, {1: torch.zeros(2)}, {"state_dict": [1]},
     {"patch_embed.proj.weight": torch.zeros(2)}, {"model": {"x": torch.zeros(3)}}],
)  # fmt: skip
def test_checkpoints_that_hold_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError):
        load_encoder(f"timm:test_vit@{tmp_path / 'x.pth'}")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_encoder(tmp_path / "x.pth")


def test_states_that_are_bytes(tmp_path):
    junk = bytes(range(256)) * 9
    save_tree(tmp_path / "state", {"a": torch.ones(3)})
    (tmp_path / "state.sha256").write_bytes(junk)
    with pytest.raises(DamagedFile, match="no hash"):
        load_tree(tmp_path / "state")
    (tmp_path / "state").write_bytes(junk)
    with pytest.raises(DamagedFile):
        load_tree(tmp_path / "state")


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    words = [*command("pretrain", sets), "--checkpoint-every=1"]
    assert main([*words, f"--out={folder}", "--max-steps=2"]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "code"),
    [("metrics.jsonl", 0), ("speed.jsonl", 0), ("skipped.csv", 0), ("config.yaml", 2), ("source.npz", 2),
     (".frepa-run.jsonl", 2), ("checkpoints/step-000000002.safetensors.sha256", 0),
     ("checkpoints/step-000000002.safetensors", 0)],
)  # fmt: skip
def test_files_of_a_run_that_are_bytes(sets, run, tmp_path, said, name, code):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / name).write_bytes(bytes(range(256)) * 9)
    words = [*command("pretrain", sets), f"--out={again}", "--resume", "--max-steps=3"]
    found = said(*words, code=code)
    if "step-" in name:
        assert "Checkpoint damaged, using the one before it" in found
    if code:
        assert name.rpartition("/")[2] in found
    else:
        assert (again / "report.html").read_text("utf-8")


def test_a_store_that_says_what_none_can_be(sets, tmp_path, said):
    store = tmp_path / "store"
    assert main([*command("prepare", sets), f"--out={store}"]) == 0
    facts = json.loads((store / "store.json").read_text())
    wrong: dict[str, tuple[Any, ...]] = {
        "dims": (4, -1, "x", None, True, 10**30), "records": (-1, 10**30, 13, 0, 1.5, "x", None, [1]),
        "channels": (0, 2, None), "affine": (0, "x", None), "modalities": (["CT"], {"CT": -1}, None),
        "files": ([], {"a": 1}, {"index/records.bin": {"bytes": -1}}, None, {}), "labels": (5, [[1]]),
        "fingerprint": (5, None), "options": ([], None),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            (store / "store.json").write_text(json.dumps({**facts, name: value}))
            assert "damaged" in said(*command("check", sets, store)), (name, value)
    (store / "store.json").write_text("[" * 5000)
    assert "damaged" in said(*command("check", sets, store))


@pytest.mark.parametrize("text", ["SECRET: [", "SECRET", "- SECRET", "%SECRET", "!!python/object:SECRET", "1: SECRET",
                                  "SE CRET: 1", "root:*:SECRET: 1", "max_steps: SECRET", "seed: {SECRET: 1}",
                                  "resume: SECRET", "method: {name: [SECRET]}", "a: &x {SECRET: *x}"])  # fmt: skip
def test_nothing_of_a_wrong_config_is_shown(sets, tmp_path, said, text):
    (tmp_path / "c.yaml").write_text(text)
    words = [word for word in command("pretrain", sets) if "max-steps" not in word]
    for options in (
        [f"--config={tmp_path / 'c.yaml'}", *words[1:]],
        [*words[1:], "--config", str(tmp_path / "c.yaml")],
    ):
        assert "SECRET" not in said("pretrain", *options, f"--out={tmp_path / 'out'}").replace(str(sets), "")


@pytest.mark.parametrize("name", ["/etc/passwd", "/dev/null", "/", "no.yaml", "", "x" * 5000, "a\0b"])
def test_configs_that_are_none(sets, tmp_path, said, name):
    found = said("pretrain", f"--config={name}", str(sets / "scans"), f"--out={tmp_path / 'out'}")
    assert "--config" in found
    assert "root:" not in found


def test_what_is_typed_wins_over_a_file_wherever_it_stands(sets, tmp_path):
    other = sets / "classes"
    file = tmp_path / "c.yaml"
    # A wrong seed ends the run before anything heavy is done, and says which value was taken.
    file.write_text(
        f"source: {sets / 'scans'}\nout: {tmp_path / 'filed'}\nseed: 5\nmethod: {{name: mae, mask_ratio: 0.5}}\n"
    )
    from frepa import cli
    from frepa.verbs.pretrain import pretrain

    typed = [str(other), f"--out={tmp_path / 'typed'}", "--seed=7", "--method.mask-ratio=0.25"]
    for words in (
        ["--config", str(file), *typed],
        [*typed, "--config", str(file)],
        [*typed[:2], f"--config={file}", *typed[2:]],
    ):
        given = cli.read_words("pretrain", pretrain, words)
        assert given is not None
        assert given["source"] == str(other)
        assert given["out"] == str(tmp_path / "typed")
        assert given["seed"] == 7
        assert given["method"] == {"name": "mae", "mask_ratio": 0.25}
    alone = cli.read_words("pretrain", pretrain, ["--config", str(file)])
    assert alone is not None
    assert (alone["source"], alone["seed"]) == (str(sets / "scans"), 5)


def test_a_killed_reader_saves_and_is_a_sentence(sets, tmp_path, said, monkeypatch, capsys):
    words = [word for word in command("pretrain", sets) if "workers" not in word and "steps" not in word]
    words += ["--num-workers=1", "--max-steps=40", f"--out={tmp_path / 'run'}", "--resume"]
    step = Journal.step

    def killing(self, count, *args, **kwargs):
        step(self, count, *args, **kwargs)
        if count == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", killing)
        found = said(*words, code=1)
    assert "A process that reads images was ended from outside" in found
    assert "--resume" in found
    assert main(words) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 40


def test_a_folder_that_is_removed_meanwhile_is_a_sentence(sets, tmp_path, said, monkeypatch):
    run, step = tmp_path / "run", Journal.step

    def removing(self, count, *args, **kwargs):
        if count == 2:
            shutil.rmtree(run)
        step(self, count, *args, **kwargs)

    monkeypatch.setattr(Journal, "step", removing)
    words = [*command("pretrain", sets), f"--out={run}", "--max-steps=4"]
    assert "removed or renamed meanwhile" in said(*words, code=1)
    assert not run.exists()
