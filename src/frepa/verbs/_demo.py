"""The demo's steps: images, pretraining, probes and heads on three encoders, what each keeps of every frequency."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frepa.errors import Stopped
from frepa.files import write_atomically
from frepa.images.angiograms import angiogram
from frepa.options import check_seed
from frepa.run_folders import out_folder

# 16 x 16 pixels become one position: the encoder has to choose what to keep, as the paper's encoders have to.
ENCODER = "convnext_atto,output_stride=16"
# The vessels are dark. A guide that answers to bright ridges too answers to the noise between them.
GUIDE = "frangi_dark"
SIZE = 96
UNLABELLED = 400
LABELLED = {"train": 24, "val": 4, "test": 8}
# Enough to see the order of the encoders, few enough for a coffee.
STEPS = 900
HEAD_STEPS = 90

# Random draws of the images: unlabelled and labelled ones never share a seed.
_LABELLED_SEEDS = 1_000_000


def run_demo(out: Path, *, seed: int, num_workers: int, overwrite: bool, quiet: bool) -> Path:
    """Run ``frepa demo``; returns its folder."""
    check_seed(seed)
    with out_folder(out, "demo", overwrite=overwrite) as folder:
        folder.start()
        try:
            _run(out, seed=seed, num_workers=num_workers, overwrite=overwrite, quiet=quiet)
        except Stopped:
            raise Stopped("Stopped on request. A demo is begun again: add --overwrite.") from None
    return out


def _run(out: Path, *, seed: int, num_workers: int, overwrite: bool, quiet: bool) -> None:
    from frepa.verbs._demo_page import DemoRun, write_page
    from frepa.verbs.pretrain import pretrain
    from frepa.verbs.segment import segment

    start = time.perf_counter()
    unlabelled, labelled = write_images(out / "images", seed)
    pretrained = pretrain(
        str(unlabelled), out=str(out / "pretrained"), encoder=ENCODER, guide=GUIDE, image_size=SIZE, batch_size=8,
        max_steps=STEPS, lr=1e-3, schedule="cosine", warmup_steps=STEPS // 12,
        method={"name": "frepa", "spectrum_patch": 3, "image_patch": 8},
        val_images=4, seed=seed, num_workers=num_workers, checkpoint_every=STEPS, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    untrained = f"random:{ENCODER},seed={seed}"
    encoders = {
        "Frepa, pretrained": str(pretrained),
        "untrained, with guide": f"{untrained},guide={GUIDE}",
        "untrained, without guide": f"{untrained},guide=none",
    }
    runs = {}
    for number, (name, encoder) in enumerate(encoders.items(), 1):
        common: dict[str, Any] = {
            "encoder": encoder, "crop_size": SIZE, "seed": seed, "num_workers": num_workers, "overwrite": overwrite,
            "quiet": quiet,
        }  # fmt: skip
        probe = segment([str(labelled)], out=str(out / f"probe-{number}"), head="linear", features="last", **common)
        head = segment(
            [str(labelled)], out=str(out / f"segmentation-{number}"), max_steps=HEAD_STEPS, warmup_steps=10, **common
        )
        runs[name] = DemoRun(encoder, Path(probe), Path(head))
    write_page(
        out, pretrained.folder, runs, architecture=ENCODER, unlabelled=unlabelled, labelled=labelled, start=start,
    )  # fmt: skip


def write_images(folder: Path, seed: int) -> tuple[Path, Path]:
    """Angiograms without labels, and others with exact masks in the layout images/ + masks/ with its three parts."""
    unlabelled, labelled = folder / "unlabelled", folder / "labelled"
    unlabelled.mkdir(parents=True, exist_ok=True)
    for number in range(UNLABELLED):
        image, _ = angiogram(SIZE, seed * 10_000 + number)
        _write_png(unlabelled / f"{number:03d}.png", image * 255)
    number = 0
    for part, count in LABELLED.items():
        for kind in ("images", "masks"):
            (labelled / part / kind).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image, mask = angiogram(SIZE, _LABELLED_SEEDS + seed * 10_000 + number)
            for kind, array in (("images", image * 255), ("masks", mask * 255)):
                _write_png(labelled / part / kind / f"{number:03d}.png", array)
            number += 1
    return unlabelled, labelled


def _write_png(path: Path, array: np.ndarray) -> None:
    image = Image.fromarray(np.round(array).astype(np.uint8))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), sync=False)
