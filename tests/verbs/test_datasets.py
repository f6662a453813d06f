"""The commands of `frepa datasets`, called as functions."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.catalogue import entry as entry_module
from frepa.errors import InputError
from frepa.verbs.datasets import datasets_fetch, datasets_list, datasets_show, datasets_verify


def _ids(text: str) -> set[str]:
    return {line.split()[0] for line in text.split("\n\n")[0].splitlines()[1:]}


def test_list_shows_everything_once() -> None:
    text = datasets_list()
    assert len(_ids(text)) == 62
    line = next(line for line in text.splitlines() if line.startswith("deeplesion"))
    assert line.split() == ["deeplesion", "CT", "2D", "pretraining", "open", "928,020"]
    assert max(map(len, text.splitlines())) <= 100


def test_list_filters() -> None:
    assert _ids(datasets_list(modality="retina")) == {
        "aptos2019",
        "chasedb1",
        "drive",
        "eyepacs-dr",
        "hrf",
        "odir-5k",
        "stare",
    }
    assert _ids(datasets_list(modality="FUNDUS", task="segmentation")) == {"chasedb1", "drive", "hrf", "stare"}
    assert _ids(datasets_list(access="credentialed")) == {"mimic-cxr"}
    assert len(_ids(datasets_list(role="pretraining"))) == 31
    assert len(_ids(datasets_list(role="downstream"))) == 26
    assert len(_ids(datasets_list(role="both"))) == 5
    assert "No dataset" in datasets_list(modality="EM", access="credentialed")
    with pytest.raises(InputError, match=r"--modality ultrasond: Did you mean ultrasound"):
        datasets_list(modality="ultrasond")
    with pytest.raises(InputError, match=r"--role pretrain: Did you mean pretraining"):
        datasets_list(role="pretrain")


def test_list_is_fast_and_light() -> None:
    """One second for a list, and nothing heavy imported for it."""
    code = (
        "import sys; from frepa.verbs.datasets import datasets_list; datasets_list();"
        "print(*[m for m in ('torch', 'pyarrow', 'pydicom', 'nibabel', 'h5py') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert time.perf_counter() - start < 5  # about 0.2 s; the margin is for a busy machine


def test_show_says_what_is_not_verified() -> None:
    text = datasets_show("drive")
    for words in ("[drive]", "grand-challenge.org", "21_training.tif", "20 masks, split train", "drive-vessel", "82.9"):
        assert words in text
    assert "├── 1st_manual/" in text
    text = datasets_show("msd")
    assert "484 images, task Task01_BrainTumour, split train (not verified)" in text
    assert "260 images, task Task04_Hippocampus, split train\n" in text
    assert "abdomenct-1k" in text
    assert "licence       CC BY 3.0 (not verified)" in datasets_show("ct-colonography")
    assert "not known" in datasets_show("ebus")
    assert "--only size=224" in datasets_show("octmnist")
    for name in entry_module.dataset_ids():
        assert max(map(len, datasets_show(name).splitlines())) <= 170, name
    with pytest.raises(InputError, match="Did you mean drive"):
        datasets_show("drives")


def test_verify_reports_and_only_strict_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "DRIVE" / "training" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "21_training.tif")
    text = datasets_verify("drive", str(tmp_path))
    assert "1  20   differs" in text
    assert "1 of 1 images have no vessel mask" in text
    with pytest.raises(InputError, match="differs from a complete one"):
        datasets_verify("drive", str(tmp_path), strict=True)
    assert "1  20   differs" in capsys.readouterr().out
    with pytest.raises(InputError, match="There is no folder"):
        datasets_verify("drive", str(tmp_path / "none"))


def test_a_complete_copy_passes_strictly(shared_data: Path) -> None:
    assert "This copy is complete" in datasets_verify("chasedb1", str(shared_data / "CHASE_DB1"), strict=True)


def test_fetch_asks_for_the_licence_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(InputError, match=r"CC BY 4\.0.*--accept-licence"):
        datasets_fetch("breastmnist", out=str(out))
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(InputError, match="not accepted"):
        datasets_fetch("breastmnist", out=str(out))
    assert not out.exists()
    with pytest.raises(InputError, match="size=64"):
        datasets_fetch("breastmnist", out=str(out), only="64")


def test_fetch_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: a yes at the prompt, the transfer, the checksum, the table."""
    stack = {f"{split}_images": np.zeros((2, 28, 28), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.array([[0], [1]], np.uint8) for split in ("train", "val", "test")}
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    np.savez(mirror / "breastmnist.npz", **stack, **labels)
    digest = hashlib.md5((mirror / "breastmnist.npz").read_bytes()).hexdigest()
    known = entry_module.load_entry("breastmnist")
    small = entry_module.Download(known.downloads[0].url, f"md5:{digest}", {"size": "28"})
    monkeypatch.setitem(known.__dict__, "downloads", [small])

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    terminal = io.StringIO("y\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            folder = datasets_fetch("breastmnist", out=str(tmp_path / "out"), base_url=url)
        finally:
            server.shutdown()
            thread.join()
    assert folder == tmp_path / "out"
    assert re.search(r"labelled, split train +2 +546 +differs", datasets_verify("breastmnist", str(folder)))
