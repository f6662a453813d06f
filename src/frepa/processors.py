"""How many processes can work at once. Nothing heavy is imported here: a check of scans needs no network."""

from __future__ import annotations

import os


def processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
