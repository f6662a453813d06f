"""The demo's steps: images, pretraining, three segmentations of the same kind, one page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frepa.errors import Stopped
from frepa.files import write_atomically
from frepa.images.angiograms import angiogram
from frepa.report.figures import loss_curves
from frepa.report.overlays import prediction_overlay
from frepa.report.page import MeanStd, Page
from frepa.run_folders import out_folder

# 16 x 16 pixels become one position: the encoder has to choose what to keep, as the paper's encoders have to.
_ENCODER = "convnext_atto,output_stride=16"
_SIZE = 96
_UNLABELLED = 96
_LABELLED = {"train": 6, "val": 2, "test": 6}

# Random draws of the images: unlabelled and labelled ones never share a seed.
_LABELLED_SEEDS = 1_000_000


def run_demo(out: Path, *, seed: int, num_workers: int, overwrite: bool, quiet: bool) -> Path:
    """Run ``frepa demo``; returns its folder."""
    with out_folder(out, "demo", overwrite=overwrite) as folder:
        folder.start()
        try:
            _run(out, seed=seed, num_workers=num_workers, overwrite=overwrite, quiet=quiet)
        except Stopped:
            raise Stopped("Stopped on request. A demo is begun again: add --overwrite.") from None
    return out


def _run(out: Path, *, seed: int, num_workers: int, overwrite: bool, quiet: bool) -> None:
    from frepa.verbs.pretrain import pretrain
    from frepa.verbs.segment import segment

    start = time.perf_counter()
    unlabelled, labelled = _write_images(out / "images", seed)
    pretrained = pretrain(
        str(unlabelled), out=str(out / "pretrained"), encoder=_ENCODER, image_size=_SIZE, batch_size=8,
        max_steps=_STEPS, lr=1e-3, schedule="cosine", warmup_steps=_STEPS // 12,
        method={"name": "frepa", "spectrum_patch": 3, "image_patch": 8},
        val_images=4, seed=seed, num_workers=num_workers, checkpoint_every=_STEPS, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    untrained = f"{_ENCODER},seed={seed}"
    encoders = {
        "Frepa, pretrained": str(pretrained),
        "random, with guide": f"random:{untrained}",
        "random, without guide": f"random:{untrained},guide=none",
    }
    runs = {}
    for number, (name, encoder) in enumerate(encoders.items()):
        runs[name] = segment(
            [str(labelled)], encoder=encoder, out=str(out / f"segmentation-{number + 1}"), crop_size=_SIZE,
            batch_size=8, max_steps=_HEAD_STEPS, lr=2e-3, seed=seed, num_workers=num_workers, overwrite=overwrite,
            quiet=quiet,
        )  # fmt: skip
    _write_page(out, pretrained, runs, seconds=time.perf_counter() - start)


# Enough to see the order of the three encoders, few enough for a coffee.
_STEPS = 400
_HEAD_STEPS = 80


def _write_images(folder: Path, seed: int) -> tuple[Path, Path]:
    """96 angiograms without labels; 14 with exact masks, in the layout images/ + masks/ with its three parts."""
    unlabelled, labelled = folder / "unlabelled", folder / "labelled"
    unlabelled.mkdir(parents=True, exist_ok=True)
    for number in range(_UNLABELLED):
        image, _ = angiogram(_SIZE, seed * 10_000 + number)
        _write_png(unlabelled / f"{number:03d}.png", image * 255)
    number = 0
    for part, count in _LABELLED.items():
        for kind in ("images", "masks"):
            (labelled / part / kind).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image, mask = angiogram(_SIZE, _LABELLED_SEEDS + seed * 10_000 + number)
            for kind, array in (("images", image * 255), ("masks", mask * 255)):
                _write_png(labelled / part / kind / f"{number:03d}.png", array)
            number += 1
    return unlabelled, labelled


def _write_png(path: Path, array: np.ndarray) -> None:
    image = Image.fromarray(np.round(array).astype(np.uint8))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), sync=False)


def _write_page(out: Path, pretrained: Path, runs: dict[str, Path], *, seconds: float) -> None:
    from frepa.pretraining.run_report import read_lines

    results = {name: json.loads((run / "results.json").read_text()) for name, run in runs.items()}
    scores = {name: next(iter(result["sets"].values()))["test"]["dsc"] for name, result in results.items()}
    page = Page("frepa demo", "Pretrain an encoder, freeze it, put it to work on fine vessels")
    page.text(
        f"Everything on this page was computed on this machine in {seconds / 60:.1f} minutes, from angiograms that the "
        "program draws itself and whose vessel masks are exact. It shows the path, not the reach, of the method: the "
        "images are easy and the training takes a few minutes."
    )
    page.section("Does pretraining help a frozen encoder?")
    page.table(
        [
            {
                "Encoder": name,
                "Guide channel": results[name]["guide"],
                "DSC (%)": MeanStd(100 * score["mean"], 100 * score["std"]),
                "Test images": score["cases"],
            }
            for name, score in scores.items()
        ],
        caption=f"The same light head on three frozen {_ENCODER} encoders; Dice coefficient (DSC) per test image.",
        best={"DSC (%)": "max"},
    )
    first, second, *_ = (100 * score["mean"] for score in scores.values())
    page.text(
        f"What pretraining adds is the difference between the first two rows, which have the same guide channel: here "
        f"{first - second:+.1f} points. The encoder turns 16 x 16 pixels into one position, so it has to choose what "
        "to keep; an untrained one chooses at random. One seed and six test images: an impression, not a proof."
    )
    page.section("What it segments")
    for name, run in runs.items():
        overlays = sorted((run / "overlays").glob("*.png"))
        for picture in [p for p in overlays if "median" in p.name][:1]:
            page.figure(picture.read_bytes(), f"{name}: the median test image.")
    page.figure(
        _on_a_photograph(next(iter(runs.values()))),
        "The pretrained encoder and its head on the retina photograph that scikit-image ships: a real image, of a kind "
        "neither has seen.",
    )
    page.section("What it learnt to reconstruct")
    pictures = sorted((pretrained / "reconstructions").glob("epoch-*.png"))
    page.figure(pictures[-1].read_bytes(), "Held-out images, corrupted in the spectrum or in the image.", wide=True)
    rows = [row for row in read_lines(pretrained / "metrics.jsonl") if "loss" in row]
    terms = ("loss", "rmse", "gradient", "hfl", "consistency")
    steps = [row["step"] for row in rows]
    page.figure(
        loss_curves({n: (steps, [row[n] for row in rows]) for n in terms}, log=True, smooth=9),
        "Terms of the objective during pretraining.",
    )
    page.section("How it was made")
    for name, file in (("Pretraining", pretrained), *runs.items()):
        page.code(f"{name}: configuration", (file / "config.yaml").read_text())
    versions = next(iter(results.values()))["versions"]
    page.code("Versions", "\n".join(f"{name} {version}" for name, version in versions.items()))
    page.save(out / "report.html")


def _on_a_photograph(run: Path) -> Any:
    """Overlay of the head's prediction on a real photograph that comes with a dependency."""
    from skimage import data
    from skimage.transform import resize

    from frepa.downstream.segmentation.model import load_segmenter

    photograph = resize(data.retina()[..., 1], (352, 352), anti_aliasing=True).astype(
        np.float32
    )  # green: most contrast
    return prediction_overlay(photograph[None], load_segmenter(run).predict(photograph[None]).classes)
