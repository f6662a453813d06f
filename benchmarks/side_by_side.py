"""Methods side by side: the same encoder, images, number of images seen and guide; what a linear probe reads of each.

    python benchmarks/side_by_side.py --drive DRIVE --octa OCTA500_3M --work work --out docs/results/methods.csv

Pretrains every method with every guide on the training images of both sets together, drawn in equal shares and without
their labels, and reads each frozen encoder by the linear probe (`frepa segment --head linear --features last`) on
either set; of OCTA-500's labelled training images every fourth is enough for it. Untrained encoders are read the same
way. Writes a row of CSV for each reading, with the floors that `segment` gives beside every score; what is in the file
already is not done again, so that it can be broken off.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch

import frepa

#: Encoder: methods that take it.
ENCODERS: dict[str, tuple[str, ...]] = {
    "convnext_atto,output_stride=16": ("frepa", "simmim", "mfm"),
    "vit_tiny,patch_size=8": ("frepa", "mae", "simmim", "mfm"),
}
COLUMNS = ("set", "encoder", "method", "guide", "steps", "images_seen", "seed", "dsc", "std", "cases", "val_dsc",
           "pretrain_processor_seconds", "floors")  # fmt: skip


def images_of(drive: Path, octa: Path, work: Path) -> Path:
    """A manifest of both sets' training images."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [(path, "fundus") for path in sorted((drive / "training" / "images").iterdir())]
    rows += [(path, "octa") for path in sorted((octa / "train" / "image").iterdir())]
    lines = ["path,modality", *(f"{path.resolve()},{modality}" for path, modality in rows)]
    (work / "images.csv").write_text("\n".join(lines) + "\n")
    return work / "images.csv"


def labelled_octa(octa: Path, work: Path) -> Path:
    """A manifest of every fourth training image, and of the validation images as the test part."""
    rows = []
    for part, step, split in (("train", 4, ""), ("val", 1, "test")):
        images = sorted((octa / part / "image").iterdir())[::step]
        for place, path in enumerate(images):
            mask = next((octa / part / "label").glob(f"{path.stem}.*"))
            rows.append(f"{path.resolve()},{mask.resolve()},{split or ('val' if place % 8 == 7 else 'train')}")
    (work / "octa.csv").write_text("\n".join(["image,mask,split", *rows]) + "\n")
    return work / "octa.csv"


def pretrained(options: argparse.Namespace, source: Path, encoder: str, method: str, guide: str) -> tuple[str, float]:
    """The run folder of a method, and the processor seconds it took."""
    out = options.work / f"{encoder.partition(',')[0]}-{method}-{guide}"
    if (out / "encoder.safetensors").is_file():
        return str(out), 0.0
    start = time.process_time()
    frepa.pretrain(
        str(source), out=str(out), method=method, encoder=encoder, guide=guide, fit="crop", image_size=options.size,
        batch_size=options.batch, max_steps=options.steps, lr=options.lr, schedule="cosine",
        warmup_steps=options.steps // 20, modality_weights="fundus=1,octa=1", val_images=16, seed=options.seed,
        num_workers=0, quiet=True, resume=True,
    )  # fmt: skip
    return str(out), time.process_time() - start


def read(options: argparse.Namespace, encoder: str, labelled: Path, out: Path) -> dict[str, Any]:
    """What the linear probe scores on a set's test images, and what is scored there without an encoder."""
    frepa.segment(
        [str(labelled)], encoder=encoder, out=str(out), head="linear", features="last", crop_size=options.size,
        overlap=0.0, augment=False, num_workers=0, quiet=True, overwrite=True,
    )  # fmt: skip
    found = json.loads((out / "results.json").read_text())
    (scores,) = found["sets"].values()
    floors = {name: round(100 * floor["mean"], 2) for name, floor in scores["baselines"].items()}
    return {
        "dsc": round(100 * scores["test"]["dsc"]["mean"], 2),
        "std": round(100 * scores["test"]["dsc"]["std"], 2),
        "cases": scores["test"]["dsc"]["cases"],
        "val_dsc": round(100 * found["training"][0]["probe"]["val_dsc"], 2),
        "floors": json.dumps(floors),
    }


def _has(rows: list[dict[str, Any]], key: dict[str, Any]) -> bool:
    return any(all(row[name] == str(value) for name, value in key.items()) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drive", type=Path, required=True)
    parser.add_argument("--octa", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs; may be large")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = images_of(options.drive, options.octa, options.work)
    sets = {"DRIVE": options.drive, "OCTA-500": labelled_octa(options.octa, options.work)}
    rows: list[dict[str, Any]] = []
    if options.out.is_file():
        with open(options.out, newline="") as file:
            rows = list(csv.DictReader(file))
    for encoder, methods in ENCODERS.items():
        for guide in ("frangi", "none"):
            for method in ("untrained", *methods):
                key = {"encoder": encoder, "method": method, "guide": guide, "seed": options.seed}
                missing = [name for name in sets if not _has(rows, key | {"set": name})]
                if not missing:
                    continue
                seconds, seen = 0.0, 0
                spec = f"random:{encoder},seed={options.seed},guide={guide}"
                if method != "untrained":
                    seen = options.steps * options.batch
                    spec, seconds = pretrained(options, source, encoder, method, guide)
                for name in missing:
                    row = key | {"set": name, "steps": seen // options.batch, "images_seen": seen}
                    row |= {"pretrain_processor_seconds": round(seconds)}
                    row |= read(options, spec, sets[name], options.work / "reading")
                    rows.append({column: str(row[column]) for column in COLUMNS})
                    print(rows[-1], flush=True)
                    with open(options.out, "w", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                        writer.writeheader()
                        writer.writerows(rows)


if __name__ == "__main__":
    main()
