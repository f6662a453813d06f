"""Promise: a place that is none, closed, or not to be written to is one sentence, and nothing is written."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

import frepa
from faults_helpers import ENCODER, command
from frepa.cli import main

_VERBS = ("pretrain", "segment", "classify", "detect", "check", "prepare", "demo")


@pytest.mark.parametrize("verb", [verb for verb in _VERBS if verb != "demo"])
def test_sources_that_are_none(sets, tmp_path, said, monkeypatch, verb):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    out = f"--out={tmp_path / 'out'}"
    monkeypatch.chdir(sets / "labelled")  # which a source without a name must not be taken for
    for options in ([out], []) if verb == "check" else ([out],):
        assert "empty" in said(*command(verb, sets, ""), *options)
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
    assert frepa.check(str(sets / "scans"), out=f"{name}2", num_workers=0, quiet=True).scores
    embed = ["embed", str(sets / "scans"), f"--encoder={ENCODER}", "--image-size=32", "--num-workers=0", "--quiet"]
    assert main([*embed, f"--out={name}3", "--format=npz"]) == 0
    assert main([*embed, f"--out={name}3", "--format=npz", "--resume"]) == 0
    assert (tmp_path / f"{name}3" / "embeddings.npz").is_file()
    monkeypatch.chdir(tmp_path / name)
    assert main([*command("check", sets, "findings.parquet"), "--out=again"]) == 2  # it is read, and has no paths
