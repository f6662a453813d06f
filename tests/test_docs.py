"""Every code block of the documentation runs, in the order of the pages, in one folder with a few images."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from frepa import cli
from frepa.images.angiograms import angiogram

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(bash|python|yaml)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def _write_images(folder: Path) -> None:
    for kind in ("images", "vessels/images", "vessels/masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(10):
        image, mask = angiogram(64, number)
        grey = Image.fromarray((image * 255).astype(np.uint8))
        grey.save(folder / "images" / f"{number}.png")
        grey.save(folder / "vessels/images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "vessels/masks" / f"{number}.png")
        for kind, factor in (("bright", 255), ("dark", 100)):
            (folder / "lesions" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * factor).astype(np.uint8)).save(folder / "lesions" / kind / f"{number}.png")
    listed = [f"lesions/{kind}/{number}.png,{kind}" for kind in ("bright", "dark") for number in range(10)]
    (folder / "lesions.csv").write_text("\n".join(["path,label", *listed]) + "\n")
    (folder / "cells").mkdir()
    rows = ["path,x_min,y_min,x_max,y_max"]
    for number in range(12):
        cells = np.random.default_rng(number).normal(90, 9, (64, 64))
        y, x = np.random.default_rng(number).integers(2, 50, 2).tolist()
        cells[y : y + 12, x : x + 10] += 90
        Image.fromarray(cells.astype(np.uint8)).save(folder / "cells" / f"{number}.png")
        rows.append(f"cells/{number}.png,{x},{y},{x + 10},{y + 12}")
    (folder / "cells.csv").write_text("\n".join(rows) + "\n")
    (folder / "volumes").mkdir()
    for number in range(3):
        volume = np.stack([angiogram(48, number)[0]] * 40).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 1, 1, 1])), folder / "volumes" / f"{number}.nii.gz")
    for kind in ("imagesTr", "labelsTr"):
        (folder / "hippocampi" / kind).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((3, 16, 16), np.uint8)
        mask[1:, 4:12, 5:9] = 1
        noise = np.random.default_rng(number).normal(0, 9, mask.shape)
        np.save(folder / "hippocampi/imagesTr" / f"{number}.npy", (100 * mask + noise).astype(np.float32))
        np.save(folder / "hippocampi/labelsTr" / f"{number}.npy", mask)


def _quietly(words: list[str]) -> list[str]:
    """Options that keep a command to one process and to itself, as far as it has them."""
    command = next(name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS)
    known = inspect.signature(cli.load_verb(command)).parameters
    return [*(["--num-workers", "0"] if "num_workers" in known else []), *(["--quiet"] if "quiet" in known else [])]


# In the order in which a reader takes them: later pages use what earlier ones made
PAGES = {
    "scans.md": 4,
    "datasets.md": 1,
    "pretraining.md": 6,
    "corruption.md": 1,
    "volumes.md": 2,
    "segmentation.md": 1,
    "classification.md": 3,
    "detection.md": 2,
    "predicting.md": 3,
    "analyses.md": 2,
    "embeddings.md": 2,
    "exporting.md": 3,
    "evaluating.md": 2,
    "comparing.md": 6,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, dict]:
    """The reader's folder, and the names of the Python blocks."""
    folder = tmp_path_factory.mktemp("reader")
    _write_images(folder)
    return folder, {}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_the_pages_run(place, monkeypatch, page):
    folder, names = place
    monkeypatch.chdir(folder)
    blocks = _blocks(page)
    assert len(blocks) == PAGES[page]
    for language, code in blocks:
        if language == "yaml":  # "# study.yaml" is the file it stands for
            Path(code.split()[1]).write_text(code)
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, page, "exec"), names)
            assert out.getvalue()
        else:
            for line in code.replace("\\\n", " ").strip().splitlines():
                words = shlex.split(line)
                assert words[0] == "frepa", f"{page}: {line}"
                assert cli.main([*words[1:], *_quietly(words[1:])]) == 0, line


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert ((DOCS / page).parent / target).exists(), f"{page} links to {target}"
