"""Arrays of ours to files that other programs read."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frepa.files import write_bytes
from frepa.images.orientation import permuted


def write_nifti(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray | None,
    *,
    spacing: Sequence[float] | None = None,
    sync: bool = True,
) -> Path:
    """Write a volume ``(D, H, W)``, or several as ``(C, D, H, W)``, of any type as NIfTI, whole or not at all.

    The file's axes run x, y, z, as viewers expect, so it holds ``array`` transposed.

    Args:
        path: ending in ``.nii`` or ``.nii.gz``.
        affine: ``(4, 4)``, indices of the array's own axes to RAS millimetres. Without it the file says that its place
            in the patient is unknown.
        spacing: millimetres per axis of the volume, for one without affine.
        sync: as in `frepa.files.write_atomically`.
    """
    import nibabel

    path = Path(path)
    place = None if affine is None else permuted(affine)
    image: Any = nibabel.Nifti1Image(np.asarray(array).transpose(), place)
    if place is not None:
        image.set_sform(place, code="scanner")
        image.set_qform(place, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
    elif spacing is not None:
        image.header.set_zooms((*spacing[::-1], *[1.0] * (image.ndim - 3)))
        image.header.set_xyzt_units("mm")
    # nibabel goes by the ending of the name, and a temporary file has another
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content, sync=sync)
    return path
