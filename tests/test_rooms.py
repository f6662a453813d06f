"""The house: a room imports from the rooms above it only, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import frepa

ROOT = Path(frepa.__file__).parent
#: From the ground up: a room may import from those before it. One line here for a new room.
ROOMS = (
    "errors", "names", "options", "files", "states", "checkpoints", "locks", "stopping", "user_paths", "run_folders",
    "processors", "machine", "memory", "draws", "schedules", "optimizers", "report", "images", "datasets", "checks",
    "corruption", "encoders", "exporting", "heads", "pretraining", "downstream", "analysis", "comparison", "verbs",
    "config_files", "cli", "__main__",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("frepa", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it; imports for the type checker alone are left out."""
    tree = ast.parse(path.read_text())
    for node in [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]:
        node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in known else node.module


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(name, path, known)) - {name, "frepa"} for name, path in known.items()}


def test_every_room_is_in_the_list() -> None:
    assert {room(name) for name in modules()} - {""} <= set(ROOMS)


def test_rooms_import_only_from_rooms_above_them() -> None:
    order = {name: place for place, name in enumerate(ROOMS)}
    wrong = [
        f"{name} imports {other}"
        for name, others in sorted(arrows().items())
        for other in sorted(others)
        if room(name) and order[room(other)] > order[room(name)]
    ]
    assert wrong == []


def test_no_circle_of_files() -> None:
    """What cannot be reached by taking away files that import nothing left, again and again, is a circle."""
    left = {name: set(others) for name, others in arrows().items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}
