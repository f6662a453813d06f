"""Masks that lie among the images are told of, whoever opens the folder; a manifest lists what its author wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import frepa
from frepa.datasets.opening import open_source
from frepa.images.label_folders import label_folder, warning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("images", "Masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(3):
            array = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "set" / kind / f"{number}.png")
    return tmp_path / "set"


def test_names_of_folders_not_of_files():
    assert label_folder("a/labelsTr/b") == "labelsTr"
    assert label_folder("unmasked/images") == ""
    assert warning(["mask.png", "images/label.png"]) == ""
    assert warning([]) == ""


def test_a_folder_with_masks_is_told_of_with_their_number(folder, tmp_path):
    assert len(open_source(str(folder), dims=2)) == 3  # a layout that is known: its masks are no images
    (sentence,) = open_source(f"files:{folder}", dims=2).warnings
    assert sentence.startswith("3 of 6 files lie in folders that hold labels by their names (Masks/).")
    assert open_source(str(folder / "images"), dims=2).warnings == []
    manifest = tmp_path / "list.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in sorted((folder / "Masks").iterdir())))
    assert open_source(str(manifest), dims=2).warnings == []


def test_prepare_and_pretrain_print_it(folder, tmp_path, capsys):
    for text, words in ((str(folder), "3 files are masks"), (f"files:{folder}", "3 of 6 files lie in folders")):
        frepa.prepare(text, out=str(tmp_path / words[:4]), num_workers=0, quiet=True)
        assert words in capsys.readouterr().err
    tiny = {"encoder": "timm:test_convnext", "image_size": 16, "batch_size": 2, "max_steps": 1, "num_workers": 0}
    frepa.pretrain(str(folder), out=str(tmp_path / "run"), quiet=True, **tiny)
    assert "3 files are masks" in capsys.readouterr().err
