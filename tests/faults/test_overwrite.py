"""Promise: --overwrite removes what a run of the same verb wrote, and nothing else, whatever it is pointed at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.cli import main
from frepa.images.angiograms import angiogram

ENCODER = "random:timm:test_convnext"
PRETRAIN = ["--encoder=timm:test_convnext", "--image-size=32", "--batch-size=2", "--max-steps=1", "--val-images=0",
            "--method.spectrum-patch=4", "--method.image-patch=8", "--num-workers=0", "--quiet"]  # fmt: skip
HEAD = ["--max-steps=1", "--num-workers=0", "--quiet"]


def _images(folder: Path, count: int = 6) -> Path:
    """Angiograms, with masks beside them and a folder per class above."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for seed in range(count):
        image, mask = angiogram(32, seed)
        for kind, array in (("images", image), ("masks", mask)):
            Image.fromarray((array * 255).astype(np.uint8)).save(folder / kind / f"{seed}.png")
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("verb", ["pretrain", "segment", "classify", "detect", "embed", "check", "prepare", "demo"])
def test_a_project_with_a_config_is_no_run(tmp_path, capsys, verb):
    project = tmp_path / "proj"
    _images(project)
    (project / "config.yaml").write_text("title: thesis\n")
    (project / "thesis.tex").write_text("three years")
    before = _contents(project)
    words = {
        "pretrain": ["pretrain", str(project / "images"), *PRETRAIN],
        "segment": ["segment", str(project), f"--encoder={ENCODER}", *HEAD],
        "classify": ["classify", str(project), f"--encoder={ENCODER}", *HEAD],
        "detect": ["detect", str(project), f"--encoder={ENCODER}", *HEAD],
        "embed": ["embed", str(project / "images"), f"--encoder={ENCODER}", "--num-workers=0", "--quiet"],
        "check": ["check", str(project / "images"), "--num-workers=0", "--quiet"],
        "prepare": ["prepare", str(project / "images"), "--num-workers=0", "--quiet"],
        "demo": ["demo", "--quiet"],
    }[verb]
    assert main([*words, f"--out={project}", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "touched" in said or "removed" in said
    assert _contents(project) == before


def test_a_source_inside_a_run_survives(tmp_path, capsys):
    run = tmp_path / "run"
    source = _images(tmp_path / "data")
    assert main(["pretrain", str(source / "images"), f"--out={run}", *PRETRAIN]) == 0
    (source / "images").rename(run / "images")
    before = _contents(run)
    capsys.readouterr()
    for text in (run / "images", f"{run}/images/*.png", tmp_path, run):
        assert main(["pretrain", str(text), f"--out={run}", "--overwrite", *PRETRAIN]) == 2
        said = capsys.readouterr().err
        assert ("lies inside the source" if text == tmp_path else "the folder to be replaced") in said
    assert _contents(run) == before


@pytest.mark.slow
def test_an_encoder_survives_the_head_that_stands_on_it(tmp_path, capsys):
    source, run = _images(tmp_path / "data"), tmp_path / "run"
    assert main(["pretrain", str(source / "images"), f"--out={run}", *PRETRAIN]) == 0
    head = ["segment", str(source), *HEAD]
    before = _contents(run)
    assert main([*head, f"--encoder={run}", f"--out={run}", "--overwrite"]) == 2
    assert "frepa pretrain" in capsys.readouterr().err
    assert _contents(run) == before
    assert main([*head, f"--encoder={run}", f"--out={tmp_path / 'head'}"]) == 0
    (tmp_path / "head" / "mine.txt").write_text("mine")
    assert main([*head, f"--encoder={run}", f"--out={tmp_path / 'head'}", "--overwrite"]) == 0
    assert "mine.txt" in capsys.readouterr().err
    assert (tmp_path / "head" / "mine.txt").read_text() == "mine"


def test_a_store_is_replaced_file_by_file(tmp_path, capsys):
    source, store = _images(tmp_path / "data"), tmp_path / "store"
    pack = ["prepare", str(source / "images"), f"--out={store}", "--num-workers=0", "--quiet"]
    assert main(pack) == 0
    mine = [store / "notes.txt", store / "shards" / "notes.txt", store / "index" / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    whole = {name: data for name, data in _contents(store).items() if "notes" not in name}
    assert main([*pack, "--overwrite"]) == 0
    assert "it stays" in capsys.readouterr().err
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert {name: data for name, data in _contents(store).items() if "notes" not in name} == whole
    (source / "images").rename(store / "images")
    pack[1] = str(store / "images")
    assert main([*pack, "--overwrite"]) == 2
    assert "lies inside the folder to be replaced" in capsys.readouterr().err
    assert len(list((store / "images").iterdir())) == 6
