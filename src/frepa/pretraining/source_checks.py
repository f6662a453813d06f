"""What is wrong with a source as a whole, found before a run begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from frepa.errors import InputError
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source


def check_spacing_known(source: Source, spacing: Any) -> None:
    """Refuse a spacing that not one of the records looked at can be brought to; a few that cannot are skipped later."""
    for index in _spread(len(source), 64):
        try:
            if source.header(index).spacing is not None:
                return
        except UnreadableScan:
            continue
    raise InputError(
        f"--spacing {spacing}: none of the scans looked at in {source.location} says how large its voxels are. "
        "Leave --spacing out, or give files that do (NIfTI, DICOM, MHD, NRRD)."
    )


def check_something_readable(source: Source) -> None:
    """Refuse a source of which not one of the records looked at can be read, instead of training on nothing."""
    reason = ""
    for index in _spread(len(source), 32):
        try:
            source.read(index)
            return
        except UnreadableScan as error:
            reason = reason or f"{source.name(index)}: {error.reason}"
    raise InputError(f"None of the scans looked at in {source.location} can be read. The first, {reason}")


def _spread(length: int, count: int) -> list[int]:
    """Up to ``count`` records spread evenly over a source."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64)).tolist()
