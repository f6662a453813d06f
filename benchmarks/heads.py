"""How a segmentation head's score grows with its steps, and what each reading of the features gives. Appends to a CSV.

    python benchmarks/heads.py SOURCE --encoder ENCODER --out FILE.csv [--features last pyramid pyramid+image]
        [--steps 0 100 300 1000 3000] [--seeds 0 1 2] [--crop-size 128] [--batch-size 8] [--lr 0.001]

Every run is one `frepa segment` on the whole set, with its official parts. 0 steps is the linear head in closed form,
which has no seed. Rows that the file has already are not measured again, so that a long curve can be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from frepa.verbs.segment import segment

COLUMNS = (
    "set", "encoder", "guide", "features", "steps", "batch", "seed", "lr", "crop", "test_dsc", "test_std", "val_dsc",
    "kept_step", "probe_val_dsc", "probe_seconds", "seconds", "validating_seconds", "all_foreground", "atlas",
    "guide_alone",
)  # fmt: skip
KEY = ("set", "encoder", "features", "steps", "batch", "seed", "lr", "crop")


def measure(
    source: str, encoder: str, features: str, steps: int, batch: int, seed: int, lr: float, crop: int
) -> dict[str, object]:
    """One run as a row of the table; scores in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "features": features, "head": "conv" if steps else "linear", "crop_size": crop, "max_steps": steps or None,
            "batch_size": batch,
            "lr": lr, "seed": seed, "overlap": 0.25, "num_workers": 0, "quiet": True,
        }  # fmt: skip
        run = segment([source], encoder=encoder, out=f"{folder}/run", **options)
        results = json.loads((run / "results.json").read_text())
    (item,) = results["sets"].values()
    (training,), dsc = results["training"], item["test"]["dsc"]
    floors = {name: round(100 * floor["mean"], 2) for name, floor in item["baselines"].items()}
    probe = training["probe"] or {"val_dsc": float("nan"), "seconds": 0.0}
    return {
        "set": Path(source).name, "encoder": encoder, "guide": results["guide"], "features": features, "steps": steps,
        "batch": batch, "seed": seed, "lr": lr, "crop": crop, "test_dsc": round(100 * dsc["mean"], 2),
        "test_std": round(100 * dsc["std"], 2), "val_dsc": round(100 * training["best_val_dsc"], 2),
        "kept_step": training["best_step"], "probe_val_dsc": round(100 * probe["val_dsc"], 2),
        "probe_seconds": round(probe["seconds"], 1), "seconds": round(training["seconds"], 1),
        "validating_seconds": round(training["validating"], 1), "all_foreground": floors.get("all_foreground"),
        "atlas": floors.get("atlas"), "guide_alone": floors.get("guide"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--features", nargs="+", default=["last"])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 100, 300, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--crop-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8, help="crops per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    known = set()
    if asked.out.exists():
        with open(asked.out, newline="") as file:
            known = {tuple(row[name] for name in KEY) for row in csv.DictReader(file)}
    else:
        asked.out.write_text(",".join(COLUMNS) + "\n")
    for features in asked.features:
        for steps in asked.steps:
            for seed in asked.seeds if steps else asked.seeds[:1]:
                what = (asked.encoder, features, steps, asked.batch_size, seed, asked.lr, asked.crop_size)
                if (Path(asked.source).name, *map(str, what)) in known:
                    continue
                row = measure(asked.source, *what)
                with open(asked.out, "a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
