"""STARE (Hoover et al. 2000): ``stare-images/im0001.ppm`` and ``labels-ah/im0001.ah.ppm``."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, stem
from frepa.datasets.layouts.registry import Listing, layout
from frepa.errors import InputError


def _detect(path: Path) -> bool:
    return (path / "stare-images").is_dir() and (path / "labels-ah").is_dir()


@layout("stare", expects="stare-images/im0001.ppm and labels-ah/im0001.ah.ppm", detect=_detect)
def read_stare(path: Path, dims: int) -> Listing:
    """Adam Hoover's labels. No official split, no field of view."""
    packed = sorted((path / "stare-images").glob("*.gz")) or sorted((path / "labels-ah").glob("*.gz"))
    if packed:
        raise InputError(f"{packed[0]}: the files are still packed. Unpack them first: gunzip {packed[0].parent}/*.gz")
    images = files_in(path / "stare-images", dims)
    masks = {stem(file).lower().removesuffix(".ah"): file for file in files_in(path / "labels-ah", dims)}
    cases = [Case(stem(i), i, masks[stem(i).lower()], group=stem(i)) for i in images if stem(i).lower() in masks]
    return Listing(cases, [i.name for i in images if stem(i).lower() not in masks], binary=True)
