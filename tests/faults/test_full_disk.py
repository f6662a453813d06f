"""Promise: a full disk is one plain sentence, the state before it is intact, and the command goes on with room."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from faults_helpers import PRETRAIN, command, contents, small_disk, write_images
from frepa.cli import main
from frepa.files import full_disk, write_tensors

_STEPS = ["--max-steps=6", "--checkpoint-every=2", "--num-workers=0"]
# Files that say when or how fast something was done
_TIMES = ("speed.jsonl", "report.html", "config.yaml", ".frepa-run.jsonl", "encoder.json")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """A run that nothing happened to, and the bytes it needs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS]) == 0
    return contents(run, *_TIMES), sum(path.stat().st_size for path in run.rglob("*"))


@pytest.mark.parametrize(
    "share", [0.4, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 0.95))]
)
def test_pretraining_goes_on_when_there_is_room(scans, whole, tmp_path, capsys, share):
    expected, needed = whole
    with small_disk(tmp_path / "disk", 4096 + int(share * needed)) as disk:
        run = disk.folder / "run"
        words = ["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS, "--resume"]
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("is full") == 1
        assert "with --resume" in said.err
        assert not list(run.rglob("*.tmp"))
        disk.resize(3 * needed)
        assert main(words) == 0
        assert contents(run, *_TIMES) == expected


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 20_000, 300_000, 1_000_000])
def test_a_limit_on_the_size_of_files_is_a_full_disk_too(scans, whole, tmp_path, limit):
    run = tmp_path / "run"
    words = ["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS, "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "frepa.cli", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "has grown as large as files may here" in done.stderr
    assert "Allow larger ones and give the same command with --resume." in done.stderr
    assert "Traceback" not in done.stderr
    assert main(words) == 0
    assert contents(run, *_TIMES) == whole[0]


@pytest.mark.parametrize(
    ("verb", "size", "how"),
    [("classify", 4096, "--resume"), ("detect", 8192, "--resume"),
     ("check", 4096, "again"), ("check", 8192, "--overwrite"), ("prepare", 4096, "again"), ("prepare", 2**26, "again")],
)  # fmt: skip
def test_a_disk_that_is_full_from_the_start(sets, tmp_path, capsys, verb, size, how):
    with small_disk(tmp_path / "disk", size) as disk:
        run = disk.folder / "run"
        words = [*command(verb, sets), f"--out={run}"]
        assert main(words) == (2 if (verb, size) == ("prepare", 4096) else 1)
        said = capsys.readouterr()
        assert said.out == "" or verb == "check"
        *_, last = said.err.splitlines()
        assert last.startswith(f"frepa {verb}: ")
        assert "is full" in last or "are free. Make room" in last
        assert "Traceback" not in said.err
        assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
        assert not (verb in ("classify", "prepare") and size == 4096 and run.exists())
        disk.resize(2**28)
        if how != "again":
            assert said.err.strip().endswith(f"give the same command with {how}.")
            words.append(how)
        assert main(words) == 0
        assert (run / {"check": "report.html", "prepare": "store.json"}.get(verb, "results.json")).is_file()


def test_a_disk_that_can_hold_no_more_files_says_so(scans, tmp_path, capsys):
    with small_disk(tmp_path / "disk", 2**22, most_files=8) as disk:
        words = ["pretrain", str(scans), f"--out={disk.folder / 'run'}", *PRETRAIN, *_STEPS, "--resume"]
        assert main(words) == 1
        assert "is full: it holds as many files as it can." in capsys.readouterr().err


def test_a_disk_with_room_for_weights_but_not_for_what_is_said_of_them(tmp_path):
    with small_disk(tmp_path / "disk", 2**16) as disk:
        with pytest.raises(OSError, match="No space left") as caught:
            write_tensors(disk.folder / "x.safetensors", {"a": torch.zeros(2**10)}, {"about": "x" * 2**17})
        assert full_disk(caught.value)
        assert list(disk.folder.iterdir()) == []
