"""What the attacks of tests/faults share: small sets of images, short commands, a disk of few bytes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.images.angiograms import angiogram

ENCODER = "random:timm:test_convnext"
PRETRAIN = ["--encoder=timm:test_convnext", "--image-size=32", "--guide=none", "--batch-size=4",
            "--method.spectrum-patch=4", "--method.image-patch=8", "--val-images=0", "--quiet"]  # fmt: skip

PATIENT = "MÜLLER HANS"
#: What stands in every name of a file of `clinic` and in the folder above; of the first also what encodings leave.
TELLING = [PATIENT, "LLER HANS", "=1970", "clinic of dr kim"]
_LONG = "of a man who was seen in the spring by us"


def write_clinic(folder: Path) -> Path:
    """Scans, labelled images and classes whose names, some of them long, tell whose they are; some cannot be read."""
    write_images(folder / "scans", count=5)
    write_labelled(folder / "labelled", count=6)
    write_classes(folder / "classes", count=5)
    for path in sorted(folder.rglob("*.png")):
        long = f" {_LONG}" if int(path.stem) % 2 else ""
        path.rename(path.with_name(f"{PATIENT}{long} {int(path.stem):04d}=1970.png"))
    for name in ("scans", "classes/bright"):
        (folder / name / f"{PATIENT} broken=1970.png").write_bytes(b"no image")
    one = next((folder / "scans").glob("*0002=*"))
    (folder / "scans" / f"{PATIENT} at home").mkdir()
    one.rename(folder / "scans" / f"{PATIENT} at home" / one.name)
    return folder


def names_in(folder: Path, said: str) -> list[tuple[str, str]]:
    """Where something telling is found in the files of a folder, or in what was said."""
    found = [("said", word) for word in TELLING if word in said]
    for path in folder.rglob("*"):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes() if path.is_file() else b""
        for word in TELLING:
            forms = {word.encode(), word.encode("latin-1"), json.dumps(word)[1:-1].encode(), word.encode("utf-16-le")}
            if word in name or any(form in content for form in forms):
                found.append((name, word))
    return found


def write_images(folder: Path, count: int = 12) -> Path:
    """Angiograms in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, _ = angiogram(32, seed)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{seed:02d}.png")
    return folder


def write_labelled(folder: Path, count: int = 8, side: int = 32) -> Path:
    """Angiograms with masks, in images/ and masks/."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, mask = angiogram(side, seed)
        for kind, array in (("images", image), ("masks", mask)):
            Image.fromarray((array * 255).astype(np.uint8)).save(folder / kind / f"{seed}.png")
    return folder


def write_classes(folder: Path, count: int = 10) -> Path:
    """Angiograms of two classes, bright ones and dark ones."""
    for name, factor in (("bright", 255), ("dark", 120)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            image, _ = angiogram(32, seed)
            Image.fromarray((image * factor).astype(np.uint8)).save(folder / name / f"{seed}.png")
    return folder


def contents(folder: Path, *leave_out: str) -> dict[str, bytes]:
    """Bytes of every file by its path, but for names in ``leave_out`` and states, whose headers are in no order."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in leave_out and not path.name.startswith("step-")
    }


def command(verb: str, sets: Path, source: object = None) -> list[str]:
    """A short run of a verb, without --out."""
    folder = {"segment": "labelled", "detect": "labelled", "classify": "classes"}.get(verb, "scans")
    text = str(sets / folder if source is None else source)
    return {
        "pretrain": ["pretrain", text, *PRETRAIN, "--max-steps=1", "--num-workers=0"],
        "check": ["check", text, "--num-workers=0", "--quiet"],
        "prepare": ["prepare", text, "--num-workers=0", "--quiet"],
        "demo": ["demo", "--quiet"],
    }.get(verb, [verb, text, f"--encoder={ENCODER}", "--max-steps=1", "--num-workers=0", "--quiet"])


class SmallDisk:
    """A folder on a disk of a few bytes, which can be made larger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int, most_files: int = 0) -> Iterator[SmallDisk]:
    """A tmpfs of ``size`` bytes at ``folder``, for any number of files; skips where none can be mounted."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={most_files}", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
