"""Small sources made of arrays, and folders compared byte by byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from frepa.images.scan import Header, Scan, UnreadableScan, replace_scan
from frepa.images.source import Source


class ArraySource(Source):
    """Scans from a list; None is a scan that cannot be read."""

    def __init__(self, scans: list[Scan | None], dims: int, labels: list | None = None) -> None:
        super().__init__()
        self.scans, self.dims, self.location = scans, dims, "memory"
        self.labels = None if labels is None else np.array(labels)

    def __len__(self) -> int:
        return len(self.scans)

    def name(self, index: int) -> str:
        return f"ward/MILLER_ANNE/{index}.img"

    def read(self, index: int) -> Scan:
        scan = self.scans[index]
        if scan is None:
            raise UnreadableScan(self.name(index), f"{index}.img of MILLER_ANNE is truncated")
        return scan if scan.id else replace_scan(scan, id=hashlib.sha256(self.name(index).encode()).hexdigest()[:16])

    def header(self, index: int) -> Header:
        scan = self.read(index)
        return Header(scan.array.shape[0], scan.size)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(b"-" if s is None else s.array.tobytes() for s in self.scans)).hexdigest()


class Drawn:
    """Classes by turns, the bright pixels of every second record as its mask, a field of view of every fourth.

    The mask of record 5 does not fit.
    """

    masks = ("mask", "mask_fov")

    def __init__(self, count: int, fingerprint: str = "drawn") -> None:
        self.fingerprint = fingerprint
        schema = pa.schema([("label", pa.string())], metadata={"target": '"bright"'})
        self.table = pa.table({"label": [("even", "odd")[i % 2] for i in range(count)]}, schema=schema)

    def read(self, index: int, column: str, image: Scan) -> np.ndarray | None:
        if index == 5 and column == "mask":
            raise UnreadableScan("5.png", "another size than its image")
        if index % (2 if column == "mask" else 4):
            return None
        bright = image.array[:1] > image.array.mean()
        return bright.astype(np.uint32) * 70000 if column == "mask" else bright.astype(np.uint8)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below ``root``."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write_pictures(root: Path) -> Path:
    """Sixty images in PNG and NumPy files: grey and colour, 8 and 16 bits, floats."""
    rng = np.random.default_rng(4)
    (root / "b").mkdir(parents=True)
    for i in range(50):
        size = tuple(int(n) for n in rng.integers(8, 80, 2))
        smooth = np.cumsum(rng.integers(0, 3, size), axis=1)
        if i % 5 == 0:
            image = Image.fromarray((smooth * 300).astype(np.uint16))
        elif i % 5 == 1:
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        else:
            image = Image.fromarray(smooth.astype(np.uint8))
        image.save(root / ("b" if i % 2 else ".") / f"{i:03}.png")
    np.save(root / "stack.npy", rng.normal(size=(10, 24, 40)).astype(np.float32))
    return root
