"""What each corruption takes from an image, by size and by frequency. Prints tables in Markdown; writes CSV and JSON.

    python benchmarks/corruption_profile.py --images SOURCE ... --volumes SOURCE ... [--count 8] [--draws 8] [--out F]

A SOURCE is a folder or a glob of scans. From each, ``--count`` images are taken at even steps, scaled to [0, 1] by
their percentiles, made grey and resized, aspect kept and padded with zeros, to 64, 128, 256 and 512 pixels; volumes are
resized to 32, 64 and 128 voxels. So it is the same content at every size. Each is corrupted ``--draws`` times.

Columns: ``rmse`` against the clean image, ``mean`` the absolute change of the image's mean, and, for rings of the
spectrum by distance from the zero frequency (in units of the Nyquist frequency of an axis; the zero frequency itself
left out), ``energy``, the energy of the corrupted image over that of the clean one (above 1 where noise adds more than
masking takes), and ``coherence``, ``|sum Y X*|^2 / (sum |Y|^2 sum |X|^2)``, the share of what is there that is still
the image's (1 for an untouched ring, near 0 for noise). Both are ratios of sums over one corrupted image, averaged over
draws and images. A ring without a coefficient, or of which nothing is left, has none.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frepa.corruption import sizes
from frepa.corruption.circle import circle_mask, circle_radius
from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.histogram import histogram_mask
from frepa.corruption.patches import patch_mask
from frepa.corruption.spectrum import signed_frequencies
from frepa.datasets.opening import open_source
from frepa.draws import Draws, sample_keys
from frepa.images.loading import Preparation

SIZES = {2: (64, 128, 256, 512), 3: (32, 64, 128)}
EDGES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, np.inf)
RINGS = ("< 0.05", "0.05-0.1", "0.1-0.25", "0.25-0.5", "0.5-0.75", "> 0.75")

# All with their defaults but for what the name says. Image patches go by size, as for resized images.
CORRUPTIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "high mask": lambda x, d: frequency_corrupt(x, d, low_noise=False),
    "high mask, adaptive": lambda x, d: frequency_corrupt(x, d, low_noise=False, adaptive=True),
    "low noise": lambda x, d: frequency_corrupt(x, d, high_mask=False),
    "low noise, complex": lambda x, d: frequency_corrupt(x, d, high_mask=False, perturbation="complex"),
    "high mask and low noise": lambda x, d: frequency_corrupt(x, d),
    "both, the paper's numbers": lambda x, d: frequency_corrupt(x, d, patch=16, scale_sigma=False, mask_centre=True),
    "histogram, Gaussian": lambda x, d: histogram_mask(x, d, fit="resize")[0],
    "histogram, permute": lambda x, d: histogram_mask(x, d, fit="resize", noise="permute")[0],
    "histogram, zero": lambda x, d: histogram_mask(x, d, fit="resize", noise="zero")[0],
    "MFM, low kept": lambda x, d: circle_mask(x, d, low_probability=1.0).image,
    "MFM, high kept": lambda x, d: circle_mask(x, d, low_probability=0.0).image,
    "SimMIM, mean fill": lambda x, d: patch_mask(x, d)[0],
}


def load(source: str, dims: int, size: int, count: int) -> Tensor:
    """``(count, 1, *S)`` in [0, 1], at even steps through the source."""
    opened = open_source(source, dims=dims)
    indices = np.linspace(0, len(opened) - 1, min(count, len(opened))).round().astype(int)
    prepared = Preparation(opened, size, mode="resize", channels=1, window=None)
    return torch.stack([torch.from_numpy(prepared.one(int(index), 0)[0]) for index in indices])


def ring_of(shape: tuple[int, ...]) -> Tensor:
    """Ring of each coefficient of the full plane, -1 for the zero frequency."""
    axes = [2 * signed_frequencies(size).double() / size for size in shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    ring = torch.bucketize(radius, torch.tensor(EDGES[1:-1], dtype=torch.float64), right=True)
    ring.view(-1)[0] = -1
    return ring


def profile(clean: Tensor, corrupted: Tensor, ring: Tensor) -> Iterator[dict[str, float]]:
    """The numbers of each image of a batch."""
    axes = tuple(range(1, clean.ndim - 1))
    own = torch.fft.fftn(clean[:, 0], dim=axes)
    found = torch.fft.fftn(corrupted[:, 0], dim=axes)
    inside = (ring >= 0).flatten()
    place = ring.flatten()[inside]

    def summed(values: Tensor) -> Tensor:
        flat = values.flatten(1)[:, inside].double()
        return torch.zeros(len(values), len(RINGS), dtype=torch.float64).index_add_(1, place, flat)

    power, left = summed(own.abs().square()), summed(found.abs().square())
    product = found * own.conj()
    shared = summed(product.real).square() + summed(product.imag).square()
    energy = left / power
    coherence = (shared / (left * power)).masked_fill(energy < 1e-6, float("nan"))  # of what is rounding alone
    rmse = (corrupted - clean).square().flatten(1).mean(1).sqrt()
    shift = (corrupted.flatten(1).mean(1) - clean.flatten(1).mean(1)).abs()
    for row in range(len(clean)):
        result = {"rmse": float(rmse[row]), "mean": float(shift[row])}
        for number, name in enumerate(RINGS):
            result[f"energy {name}"] = float(energy[row, number])
            result[f"coherence {name}"] = float(coherence[row, number])
        yield result


def measure(clean: Tensor, draws: int) -> list[dict[str, object]]:
    """One row per corruption."""
    shape = tuple(clean.shape[2:])
    ring = ring_of(shape)
    rows: list[dict[str, object]] = []
    for name, corrupt in CORRUPTIONS.items():
        found: list[dict[str, float]] = []
        for view in range(draws):
            for row in range(len(clean)):
                x, keys = clean[row : row + 1], sample_keys(0, [row], view)
                found.extend(profile(x, corrupt(x, Draws(keys)), ring))
        average = {key: float(np.mean([item[key] for item in found])) for key in found[0]}
        rows.append({"size": " x ".join(map(str, shape)), "corruption": name, **average})
    return rows


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown; all columns but the first two are numbers."""
    text = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)])


def number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}" if value < 10 else f"{value:.0f}"


def by_size(rows: list[dict[str, object]], key: str) -> str:
    """One column per size."""
    names = list(dict.fromkeys(str(row["size"]) for row in rows))
    found = {(row["corruption"], row["size"]): float(row[key]) for row in rows}
    lines = [[name, *(number(found[name, size]) for size in names)] for name in CORRUPTIONS]
    return table(["Corruption", *names], lines).replace("|---|---|", "|---|---:|")


def by_ring(rows: list[dict[str, object]], kind: str) -> str:
    """One column per ring of the spectrum."""
    lines = [[str(row["size"]), str(row["corruption"])] for row in rows]
    for line, row in zip(lines, rows):
        line.extend(number(float(row[f"{kind} {name}"])) for name in RINGS)
    return table(["Size", "Corruption", *RINGS], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="*", default=[], help="sources of images")
    parser.add_argument("--volumes", nargs="*", default=[], help="sources of volumes")
    parser.add_argument("--count", type=int, default=8, help="images of each source")
    parser.add_argument("--draws", type=int, default=8, help="times each image is corrupted")
    parser.add_argument("--out", type=Path, help="write F.csv and F.json too")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    settings: list[dict[str, object]] = []
    for dims, sources in ((2, args.images), (3, args.volumes)):
        for size in SIZES[dims] if sources else ():
            shape = (size,) * dims
            clean = torch.cat([load(source, dims, size, args.count) for source in sources])
            settings.append(
                {
                    "size": " x ".join(map(str, shape)),
                    "images": len(clean),
                    "spectrum_patch": sizes.spectrum_side(shape),
                    "image_patch_resize": sizes.image_side(shape, fit="resize"),
                    "image_patch_crop": sizes.image_side(shape, fit="crop"),
                    "noise_scale": sizes.noise_scale(shape),
                    "circle_radius": circle_radius(shape),
                }
            )
            rows += measure(clean, args.draws)
            print(f"{shape} done", file=sys.stderr)
    for key in ("rmse", "mean"):
        print(f"\n{key}\n\n{by_size(rows, key)}")
    for kind in ("energy", "coherence"):
        print(f"\n{kind}\n\n{by_ring(rows, kind)}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        plain = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        result = {"command": "python " + " ".join(sys.argv), "draws": args.draws, "sizes": settings, "rows": plain}
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
