"""The demo's page: what a linear probe and a trained head read from each encoder, and which frequencies it keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from frepa.analysis.recovery import BANDS, Recovery, random_projection, recovery
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import open_encoder
from frepa.files import write_json
from frepa.report.figures import loss_curves
from frepa.report.overlays import prediction_overlay
from frepa.report.page import MeanStd, Page
from frepa.report.spectra import share_curves

NULL = "random projection of the pixels"
# Images that the regression of the frequency curves is fitted to, in batches.
_FIT, _BATCH = 160, 20


@dataclass(frozen=True)
class DemoRun:
    """One encoder of the demo: as it is named, and the folders of its linear probe and its trained head."""

    encoder: str
    probe: Path
    head: Path


def write_page(
    out: Path,
    pretrained: Path,
    runs: Mapping[str, DemoRun],
    *,
    architecture: str,
    unlabelled: Path,
    labelled: Path,
    start: float,
) -> None:
    """Write report.html and frequencies.json to ``out``; ``start`` is when the demo began, by perf_counter.

    All encoders of ``runs`` are of one ``architecture``.
    """
    from frepa.files import read_json_lines

    kept = frequencies({name: run.encoder for name, run in runs.items()}, unlabelled, labelled / "test" / "images")
    seconds = time.perf_counter() - start
    results = {name: (_results(run.probe), _results(run.head)) for name, run in runs.items()}
    first_probe = next(iter(results.values()))[0]
    alone = next(iter(first_probe["sets"].values()))["baselines"]["guide"]["mean"]
    page = Page("frepa demo", "Pretrain an encoder, freeze it, put it to work on fine vessels")
    page.text(
        f"Everything on this page was computed on this machine in {seconds / 60:.1f} minutes, from angiograms that the "
        "program draws itself and whose vessel masks are exact. It shows the path, not the reach, of the method: the "
        "images are easy and the training takes a few minutes."
    )
    page.section("What can be read from a frozen encoder")
    page.table(
        [
            {
                "Encoder": name,
                "Guide": probe["guide"],
                "Linear probe, DSC (%)": _score(probe),
                "Trained head, DSC (%)": _score(head),
            }
            for name, (probe, head) in results.items()
        ],
        caption=f"Frozen {architecture}; Dice coefficient (DSC), mean and standard deviation over "
        f"{_dsc(first_probe)['cases']} test images. The probe reads the encoder's last map; the trained head reads all "
        f"its maps and the image. Without an encoder, the guide alone, thresholded, gives {100 * alone:.1f}.",
        best={"Linear probe, DSC (%)": "max"},
    )
    first, second, third = (100 * _dsc(probe)["mean"] for probe, _ in results.values())
    page.text(
        "The probe is a regression in closed form, from the numbers of each position to its block of mask pixels. It "
        "has no seed, no rate and no steps, so it says what the encoder's map holds. The head also sees finer maps and "
        "the image itself: it is what a user would run, and says little about the encoder."
    )
    page.text(
        f"Pretraining changes the probe by {first - second:+.1f} points at the same guide channel, and the guide by "
        f"itself changes that of the untrained encoder by {second - third:+.1f}: it answers to dark ridges, as vessels "
        "are here. One seed and a few test images: an impression, not a proof."
    )
    page.section("Which detail an encoder keeps")
    page.figure(
        share_curves(
            {name: (one.frequency, one.share) for name, one in kept.items()}, bands=BANDS, null=NULL,
        ),
        "Share of the clean test images that a linear regression recovers from the last map, by spatial frequency: 1 "
        "is all of it, 0 is nothing. The dashed line is a random projection of each block of pixels to as many "
        "numbers; where there are more numbers than pixels, it keeps everything.",
        wide=True,
    )  # fmt: skip
    page.table(
        [
            {"Encoder": name} | {f"{band} band, R²": one.bands[band] for band in BANDS}
            for name, one in kept.items()
        ],
        caption="The same by band: below 0.1, 0.1 to 0.3 and above 0.3 cycles per pixel. What noise the images hold "
        "lies in the high band, and nothing has to keep it.",
    )  # fmt: skip
    page.section("What it segments")
    best, run = next(iter(runs.items()))
    for picture in [p for p in sorted((run.head / "overlays").glob("*.png")) if "median" in p.name][:1]:
        page.figure(picture.read_bytes(), f"{best}, trained head: the median test image.")
    page.figure(
        on_a_photograph(run.head),
        "The same on the retina photograph that scikit-image ships: its green channel, the middle of the picture, with "
        "even background and the contrast of the angiograms. A real image of a kind that neither encoder nor head has "
        "seen.",
        wide=True,
    )
    page.section("What it learnt to reconstruct")
    pictures = sorted((pretrained / "reconstructions").glob("epoch-*.png"))
    page.figure(pictures[-1].read_bytes(), "Held-out images, corrupted in the spectrum or in the image.", wide=True)
    rows = [row for row in read_json_lines(pretrained / "metrics.jsonl") if "loss" in row]
    terms = [name for name in ("loss", "rmse", "gradient", "hfl", "consistency") if name in rows[0]]
    steps = [row["step"] for row in rows]
    page.figure(
        loss_curves({n: (steps, [row[n] for row in rows]) for n in terms}, log=True, smooth=9),
        "Terms of the objective during pretraining.",
    )
    page.section("How it was made")
    folders = {"Pretraining": pretrained} | {f"{name}: trained head": run.head for name, run in runs.items()}
    for name, folder in folders.items():
        page.code(f"{name}: configuration", (folder / "config.yaml").read_text())
    versions = next(iter(results.values()))[0]["versions"]
    page.code("Versions", "\n".join(f"{name} {version}" for name, version in versions.items()))
    page.save(out / "report.html")
    numbers = {name: {"bands": dict(one.bands), "share": list(one.share)} for name, one in kept.items()}
    write_json(out / "frequencies.json", numbers)


def frequencies(encoders: Mapping[str, str], fit: Path, test: Path) -> dict[str, Recovery]:
    """What a linear regression recovers of every frequency from each encoder's last map, and from the null."""
    images, others = _read(sorted(fit.glob("*.png"))[:_FIT]), _read(sorted(test.glob("*.png")))
    found: dict[str, Recovery] = {}
    width, stride = 0, cast(int | tuple[int, ...], 1)
    for name, text in encoders.items():
        encoder, _ = open_encoder(text)
        encoder.eval()
        width, stride = encoder.channels, encoder.stride
        found[name] = recovery(_map_of(encoder), stride, images.split(_BATCH), others.split(_BATCH))
    null = random_projection(width, stride)
    return found | {NULL: recovery(null, stride, images.split(_BATCH), others.split(_BATCH))}


def on_a_photograph(run: Path) -> Figure:
    """Overlay of the head's prediction on a real photograph that comes with a dependency."""
    from skimage import data
    from skimage.filters import gaussian
    from skimage.transform import resize

    from frepa.downstream.segmentation.model import load_segmenter

    green = data.retina()[..., 1].astype(np.float32) / 255  # most contrast
    middle, half = green.shape[0] // 2, green.shape[0] // 3
    inside = slice(middle - half, middle + half)
    picture = resize(green[inside, inside], (256, 256), anti_aliasing=True).astype(np.float32)
    even = picture - gaussian(picture, 16, mode="reflect")
    spread = np.sqrt(gaussian(even**2, 42, mode="reflect"))
    # The angiograms' brightness and depth of vessels: 0.65, and 0.28 at twice to three times the spread.
    like = np.clip(0.65 + 0.18 * even / (spread + 0.003), 0, 1).astype(np.float32)
    return prediction_overlay(like[None], load_segmenter(run).predict(like[None]).classes)


def _map_of(encoder: Encoder) -> Any:
    def dense(images: Tensor) -> Tensor:
        return encoder(encoder.prepare_input(images, encoder.make_guide(images))).dense

    return dense


def _read(paths: list[Path]) -> Tensor:
    return torch.stack([torch.from_numpy(np.asarray(Image.open(p), np.float32) / 255) for p in paths])[:, None]


def _results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def _dsc(result: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(result["sets"].values()))["test"]["dsc"]
    return found


def _score(result: Mapping[str, Any]) -> MeanStd:
    return MeanStd(100 * _dsc(result)["mean"], 100 * _dsc(result)["std"])
