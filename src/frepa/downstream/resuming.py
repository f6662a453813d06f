"""The folder of a head's run: opened by the rule of --out, given back at the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from frepa.run_folders import OutFolder, out_folder


def head_folder(options: Mapping[str, Any], kind: str) -> AbstractContextManager[OutFolder]:
    """The folder ``options["out"]`` of a downstream verb; see `frepa.run_folders.out_folder`."""
    return out_folder(
        options["out"],
        kind,
        overwrite=options["overwrite"],
        inputs={"the source": options["source"], "--encoder": options["encoder"]},
    )
