"""Identifiers leave under a key that is the owner's alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.anonymity import anonymous_group, key_check, key_file, pseudonym
from frepa.images.store.packing import pack_source


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FREPA_SECRET", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def scans(folder: Path, patients: list[str]) -> Path:
    folder.mkdir()
    for row in range(len(patients)):
        pixels = np.random.default_rng(row).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    rows = [f"{row}.png,{patient}" for row, patient in enumerate(patients)]
    manifest = folder / "scans.csv"
    manifest.write_text("\n".join(["path,group", *rows]) + "\n")
    return manifest


def test_the_key_is_made_once_for_its_owner_alone(home: Path) -> None:
    first = pseudonym("7654321")
    assert first == pseudonym("7654321")
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert [path.name for path in key_file().parent.iterdir()] == ["anonymity.key"]
    expected = hmac.new(key_file().read_bytes().strip(), b"7654321", hashlib.sha256).hexdigest()[:16]
    assert first == expected


def test_another_owner_has_other_names_and_the_same_secret_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anonymous_group("7654321")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert anonymous_group("7654321") != first
    monkeypatch.setenv("FREPA_SECRET", "ours")
    shared = anonymous_group("7654321")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    assert anonymous_group("7654321") == shared != first


def test_processes_that_start_together_agree_on_one_key(home: Path) -> None:
    code = "from frepa.images.anonymity import pseudonym; print(pseudonym('x'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1


def test_a_store_holds_no_hash_that_can_be_made_without_the_key(home: Path, tmp_path: Path) -> None:
    """Nobody who tries all hospital numbers, and all file names, finds one of them."""
    patients = ["7654321", "7654321", "1234567"]
    store = tmp_path / "store"
    pack_source(open_source(scans(tmp_path / "scans", patients)), store)
    held = b"".join(path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file())
    table = open_source(store)
    groups = [table.read(i).group for i in range(3)]
    assert groups[0] == groups[1] != groups[2]
    for text in (*patients, "0.png", "1.png"):
        for kind in (text, f"0\0{text}"):
            for digest in (
                hashlib.sha256(kind.encode()).hexdigest()[:16],
                hmac.new(b"frepa groups 1", kind.encode(), hashlib.sha256).hexdigest()[:16],
                hashlib.blake2b(kind.encode(), digest_size=8).hexdigest(),
            ):
                assert digest not in groups
                assert digest.encode() not in held
                assert bytes.fromhex(digest) not in held
                assert bytes.fromhex(digest)[::-1] not in held
    assert key_file().read_bytes().strip() not in held


def test_a_store_is_not_continued_under_another_key(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frepa.images.store import packing

    source = open_source(scans(tmp_path / "scans", ["1", "2"]))
    store = tmp_path / "store"

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_source(source, store)
    plan = json.loads(packing.StoreFolder(store).plan.read_text())
    assert plan["key"] == key_check()
    with monkeypatch.context() as patch:
        patch.setenv("FREPA_SECRET", "another")
        with pytest.raises(InputError, match="another secret key"):
            pack_source(source, store)
    pack_source(source, store)
    assert len(open_source(store)) == 2


def test_a_finished_store_is_read_under_any_key_and_says_whose_names_it_has(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, store = open_source(scans(tmp_path / "scans", ["1", "2", "1"])), tmp_path / "store"
    monkeypatch.setenv("FREPA_SECRET", "one")
    pack_source(source, store)
    assert json.loads((store / "store.json").read_text())["key"] == key_check()
    pack_source(source, store)
    assert capsys.readouterr().err.endswith("is complete; nothing is left to do.\n")
    groups = [open_source(store).read(index).group for index in range(3)]
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    for secret in ("another", ""):  # the second stands for the kept key
        monkeypatch.setenv("FREPA_SECRET", secret)
        pack_source(source, store)
        said = capsys.readouterr().err
        assert "nothing is left to do. It was packed under another secret key than today's" in said
        assert "Add --overwrite to pack it under this one." in said
        assert [open_source(store).read(index).group for index in range(3)] == groups
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_key_that_cannot_be_kept_is_told_of(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="FREPA_SECRET"):
        pseudonym("x")
    home.unlink()
    key_file().parent.mkdir(parents=True)
    key_file().write_text("short")
    with pytest.raises(InputError, match="damaged"):
        pseudonym("x")
