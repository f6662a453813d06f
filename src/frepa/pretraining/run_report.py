"""The page of a pretraining run: curves, reconstructions, speed, skipped files, configuration, versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from frepa.files import read_json_lines
from frepa.images.source import Source
from frepa.pretraining.methods.contract import Method
from frepa.pretraining.run_folder import RunFolder
from frepa.pretraining.watching import PREFIX
from frepa.report.figures import loss_curves, panels
from frepa.report.page import Page

_VERSIONS = ("frepa", "torch", "timm", "monai", "lightning-fabric", "numpy")


def write_report(run: RunFolder, config: Mapping[str, Any], method: Method, source: Source) -> Path:
    """Write ``report.html`` from what the run has left in its folder."""
    rows = read_json_lines(run.metrics)
    trained = [row for row in rows if "loss" in row]
    validated = [row for row in rows if "val_loss" in row]
    looked = [row for row in rows if any(name.startswith(PREFIX) for name in row)]
    timed = read_json_lines(run.speed)
    speed = [row for row in timed if "images_per_second" in row]
    skipped = run.skipped.read_text("utf-8", "replace").splitlines()[1:] if run.skipped.is_file() else []
    kind, size = ("images", f"{config['image_size']} px") if source.dims == 2 else ("volumes", voxels(config))
    page = Page(f"Pretraining of {config['encoder']}", f"{config['method']['name']} on {len(source):,} {kind}")
    page.facts(
        {
            "Encoder parameters": f"{sum(p.numel() for p in method.encoder.parameters()) / 1e6:.2f} M",
            "Guide channel": method.encoder.guide,
            "Image size" if source.dims == 2 else "Crop": size,
            "Steps": len(trained),
            "Final loss": trained[-1]["loss"] if trained else None,
            "Validation loss": validated[-1]["val_loss"] if validated else None,
            f"{kind.capitalize()}/s (median)": _median([row["images_per_second"] for row in speed]),
            "Waiting for data (median)": f"{100 * (_median([row['waiting_share'] for row in speed]) or 0):.1f} %",
            "Files skipped": len(skipped),
        }
    )
    page.section("Reconstructions")
    pictures = sorted(run.pictures.glob("epoch-*.png")) if run.pictures.is_dir() else []
    for picture in dict.fromkeys([*pictures[:1], *pictures[-1:]]):
        epoch = int(picture.stem.split("-")[1])
        page.figure(picture.read_bytes(), f"Held-out {kind} after epoch {epoch}, {method.shows}.", wide=True)
    if run.volumes.is_dir():
        page.text("The newest of these crops lie in the folder volumes as NIfTI, in their place in the patient.")
    page.section("Losses")
    names = [name for name in trained[-1] if name not in ("step", "lr", "gradient_norm")] if trained else []
    curves = {n: ([r["step"] for r in trained if n in r], [r[n] for r in trained if n in r]) for n in names}
    if validated:
        curves["validation loss"] = ([r["step"] for r in validated], [r["val_loss"] for r in validated])
    page.figure(
        loss_curves(curves, log=True, smooth=max(1, len(trained) // 50)),
        "What is minimised (loss) and its terms, unweighted.",
    )
    if looked:
        _health(page, looked, config, sum(row.get("looking_seconds", 0.0) for row in timed))
    if skipped:
        page.code(f"{len(skipped)} files skipped", "\n".join(skipped[:200]))
    page.section("How it was made")
    page.code("Configuration", yaml.safe_dump(dict(config), sort_keys=False))
    page.code("Versions", "\n".join([*(f"{n} {version(n)}" for n in _VERSIONS), f"Python {platform.python_version()}"]))
    page.text(
        f"Device: {torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or 'CPU'}."
    )
    return page.save(run.report)


def _health(page: Page, rows: list[dict[str, Any]], config: Mapping[str, Any], seconds: float) -> None:
    """Curves of what was looked at, and which step was best."""

    def curve(name: str) -> tuple[list[float], list[float]]:
        own = [row for row in rows if PREFIX + name in row]
        return [row["step"] for row in own], [row[PREFIX + name] for row in own]

    groups = {
        "Effective rank": {"rank": curve("rank")},
        "Variance": {"variance": curve("variance")},
        "Recovered beyond chance": {name: curve(name) for name in ("low", "medium", "high")},
        "Linear probe": {"probe": curve("probe")},
    }
    groups = {title: {n: c for n, c in curves.items() if c[0]} for title, curves in groups.items()}
    groups = {title: curves for title, curves in groups.items() if curves}
    by = str(config["best_by"])
    steps, values = curve(by)
    marks = {}
    if values and (config["keep"] == "best" or config["patience"]):
        best = max(range(len(values)), key=lambda place: values[place])
        marks = {title: (steps[best], values[best]) for title, curves in groups.items() if by in curves}
    page.section("What the encoder keeps")
    page.figure(
        panels(groups, marks=marks),
        "Of the held-out images, clean: effective rank of the features and their variance, over all positions; the "
        "share of each band of frequencies (low below 0.1, high above 0.3 cycles per pixel) that a ridge regression "
        "recovers from them, less what it recovers from a random projection of the same size"
        + (
            "; and the score of a linear probe on the validation part of the labelled set."
            if "Linear probe" in groups
            else "."
        )
        + (" The ring is the best." if marks else "")
        + f" Looking took {seconds:.0f} s in all.",
        wide=True,
    )


def voxels(config: Mapping[str, Any]) -> str:
    """What the encoder sees of a volume, e.g. "128^3 voxels of 1.5 mm"."""
    size, spacing = f"{config['image_size']}^3 voxels", config.get("spacing")
    if spacing is None:
        return size
    steps = [spacing] if isinstance(spacing, float) else spacing
    return f"{size} of {' x '.join(f'{step:g}' for step in steps)} mm"


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
