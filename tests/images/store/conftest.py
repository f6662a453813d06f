"""A folder of small images of many kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_helpers import write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixty images in PNG and NumPy files: grey and colour, 8 and 16 bits, floats."""
    return write_pictures(tmp_path / "pictures")
