"""What the package asks for is what it imports."""

from __future__ import annotations

import ast
import re
from importlib.metadata import distribution
from pathlib import Path

import frepa

ROOT = Path(frepa.__file__).parent
#: Required though no file imports them: what asks for them does not install them, or finds them by itself.
FOUND_BY_OTHERS = {
    "einops": "MONAI's transformers import it",
    "pylibjpeg": "pydicom finds its decoders", "pylibjpeg-openjpeg": "pydicom", "pylibjpeg-rle": "pydicom",
    "pyjpegls": "pydicom",
}  # fmt: skip


def imported() -> set[str]:
    """First names of what any file of the package imports."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def provided(name: str) -> set[str]:
    """First names of the modules of an installed distribution."""
    return {file.parts[0].removesuffix(".py") for file in distribution(name).files or () if file.suffix == ".py"}


def test_every_dependency_is_imported():
    text = (ROOT.parents[1] / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    required = set(re.findall(r'"([A-Za-z0-9._-]+)', listed[1]))
    assert len(required) > 20
    modules = imported()
    found = {name for name in required if modules & provided(name)}
    assert required - found == set(FOUND_BY_OTHERS)


def test_monai_is_imported_where_it_is_used():
    """Its import takes seconds, in which whoever gave wrong input would wait for the answer."""
    first = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if re.match(r"(import|from) monai\b", ast.unparse(node))
    }
    # These are imported on first use themselves
    assert first == {"exporting/monai_bundle.py", "pretraining/methods/adversarial.py"}
