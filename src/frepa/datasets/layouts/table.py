"""A table with a row per box: pixels, or centre and diameter in millimetres as LUNA16 lists its nodules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import CORNERS, FINDING, PARTS, SPHERES
from frepa.datasets.catalogue.tables import read_header, read_rows
from frepa.datasets.layouts.listed import Locator, check_found
from frepa.datasets.layouts.registry import Listing
from frepa.errors import InputError
from frepa.images.tables import check_columns, check_once, read_parquet

_FILES = ("path", "image", "file", "seriesuid")
# Axes of the file from the last one on; the letters of NIfTI's voxel indices are known for volumes only, since
# elsewhere i often means the row.
_LETTERS = {2: ("xy",), 3: ("xyz", "ijk")}
_SPHERE = ("coordx", "coordy", "coordz", "diametermm")
_EDGES = ("xmin", "ymin", "xmax", "ymax", "zmin", "zmax", "imin", "jmin", "kmin", "imax", "jmax", "kmax")
_USED = (*_FILES, *_EDGES, *_SPHERE, "label", "split", "group", "fold", "ignored")
_YES = frozenset({"1", "1.0", "true", "yes"})
EXPECTS = (
    "a CSV or parquet file with a row per box: path, x_min, y_min, x_max, y_max (for volumes z_min and z_max too, or "
    "coordX, coordY, coordZ, diameter_mm), and label, split, group, fold, ignored if wanted"
)

_Row = Mapping[str, str]


def has_boxes(path: Path) -> bool:
    """Whether a table has columns of a row per box, be they complete or not; no row is read."""
    try:
        columns = _columns(path)
    except InputError:  # told by whoever reads it
        return False
    return any(name in columns for name in (*_EDGES, *_SPHERE))


def read_table(path: Path, names: Iterable[str], dims: int) -> Listing:
    """Files are relative to the table's folder, or named alone and found among ``names``, the files below it.

    x is the last axis of the file's array (the column of an image, i of NIfTI), y the one before. Millimetres are
    those of LUNA16's tables, LPS as in DICOM and ITK. A row with empty box cells is an image without findings. Of a
    table of volumes 2D images get the other columns, and the word why they have no boxes.

    Raises:
        InputError: a column is missing, a cell cannot be understood (names the line), or most images are not there.
    """
    columns, rows = _read(path)
    files = next((name for name in _FILES if name in columns), None)
    # A table of volumes has the columns of a table of images too
    of_volumes = dims == 2 and _box_columns(columns, 3) is not None
    wanted = _wanted(path, columns, files, 3 if of_volumes else dims)
    assert files is not None
    images: dict[str, list[tuple[int, _Row]]] = {}
    for number, row in enumerate(rows, start=2):
        if not row[files]:
            raise InputError(f"{path}, line {number}: the column {columns[files]!r} is empty: which image is meant?")
        images.setdefault(row[files], []).append((number, row))
    locator = Locator(path.parent, names)
    place = {called: locator.find(called) for called in images}
    found = [name for name in place.values() if name is not None]
    # Two spellings of one file would be two images with half the boxes each
    if len(set(found)) < len(found):
        raise InputError(f"{path}: one image is named in two ways. Write the same path in all rows of an image.")
    absent = tuple(called for called, name in place.items() if name is None)
    check_found(path, path.parent, absent, len(place))
    known: dict[str, dict[str, Any]] = {"boxes": {}}
    known |= {name: {} for name in ("split", "fold", "group") if name in columns}
    for called, mine in images.items():
        name = place[called]
        if name is not None:
            known["boxes"][name] = None if of_volumes else _boxes(path, mine, wanted, columns)
            for column, read in (("split", _split), ("fold", _fold), ("group", _group)):
                if column in known:
                    known[column][name] = read(path, mine)
    spheres = wanted == _SPHERE
    kind = "centres and diameters in mm (LPS)" if spheres else "pixel corners"
    origin = f"the columns {', '.join(columns[name] for name in wanted)} of the table ({kind})"
    facts: dict[str, Any] = {"box_unit": SPHERES if spheres else CORNERS, "layout": "table"}
    facts["origins"] = {"boxes": origin}
    if of_volumes:
        facts = {"layout": "table", "trouble": {"boxes": _of_volumes(path, columns)}}
    return Listing(known, facts, absent=absent)


def _columns(path: Path) -> dict[str, str]:
    """Plain column name -> as written."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        try:
            names = pyarrow.parquet.read_schema(path.absolute()).names
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as a table ({error}).") from None
    else:
        names = read_header(path)
    return {_plain(name): name for name in names}


def _read(path: Path) -> tuple[dict[str, str], list[_Row]]:
    """Plain column name -> as written, and every row by plain column names."""
    if path.suffix.lower() == ".parquet":
        table = read_parquet(path)
        used = [name for name in table.column_names if _plain(name) in _USED]
        check_columns(path, table, used)
        check_once(path, [_plain(name) for name in used], _USED)
        found = table.to_pylist()
        rows = [{name: "" if cell is None else str(cell).strip() for name, cell in row.items()} for row in found]
    else:
        rows = read_rows(path, check=lambda names: check_once(path, [_plain(name) for name in names], _USED))
    if not rows:
        raise InputError(f"{path}: has no rows. Expected {EXPECTS}.")
    return _columns(path), [{_plain(name): cell for name, cell in row.items()} for row in rows]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _corner_columns(letters: str) -> tuple[str, ...]:
    """In the order of a box's corners: the last letter is the first axis."""
    return tuple(f"{letter}{side}" for side in ("min", "max") for letter in reversed(letters))


def _box_columns(columns: Mapping[str, str], dims: int) -> tuple[str, ...] | None:
    """Columns of the box: corners before spheres, since pixels need no conversion."""
    choices = [_corner_columns(letters) for letters in _LETTERS[dims]] + ([_SPHERE] if dims == 3 else [])
    return next((names for names in choices if all(name in columns for name in names)), None)


def _wanted(path: Path, columns: Mapping[str, str], files: str | None, dims: int) -> tuple[str, ...]:
    wanted = _box_columns(columns, dims)
    if files is not None and wanted is not None:
        return wanted
    shown = ", ".join(columns.values())
    if dims == 3 and _box_columns(columns, 2) is not None:
        raise InputError(
            f"{path}: its boxes have no third axis (columns {shown}), and the encoder takes volumes. Add z_min and "
            "z_max, or give a 2D encoder."
        )
    missing = "that names the image" if files is None else "set that gives a box"
    raise InputError(f"{path}: there is no column {missing}; its columns are {shown}. Expected {EXPECTS}.")


def _of_volumes(path: Path, columns: Mapping[str, str]) -> str:
    return (
        f"{path}: its boxes have three axes (columns {', '.join(columns.values())}), and the encoder takes 2D images. "
        'Give a 3D encoder, or put slices: before it, as in --encoder "slices:ENCODER"; or pack the slices with '
        "frepa prepare, which gives each its part of the boxes."
    )


def _one(path: Path, rows: Sequence[tuple[int, _Row]], column: str) -> str:
    """The value that all rows of an image agree on."""
    first = rows[0][1][column]
    for number, row in rows:
        if row[column] != first:
            raise InputError(
                f"{path}, line {number}: {column} is {row[column]!r}, but {first!r} in another row of the same image."
            )
    return first


def _split(path: Path, rows: Sequence[tuple[int, _Row]]) -> str | None:
    cell = _one(path, rows, "split")
    part = PARTS.get(cell.lower())
    if cell and part is None:
        raise InputError(f"{path}, line {rows[0][0]}: split {cell!r} is not known. Expected train, val or test.")
    return part


def _fold(path: Path, rows: Sequence[tuple[int, _Row]]) -> int | None:
    cell = _one(path, rows, "fold")
    if cell and not cell.removesuffix(".0").isdecimal():
        raise InputError(f"{path}, line {rows[0][0]}: fold {cell!r} is not known. Expected a whole number, or nothing.")
    return int(cell.removesuffix(".0")) if cell else None


def _group(path: Path, rows: Sequence[tuple[int, _Row]]) -> str | None:
    return _one(path, rows, "group") or None


def _boxes(
    path: Path, rows: Sequence[tuple[int, _Row]], wanted: tuple[str, ...], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    boxes = []
    for number, row in rows:
        if not any(row[name] for name in wanted):
            continue
        where, cells = f"{path}, line {number}", {columns[name]: row[name] for name in wanted}
        values = _sphere(where, cells) if wanted == _SPHERE else _corners(where, cells)
        label = row["label"] if "label" in columns else FINDING
        ignored = row.get("ignored", "").lower() in _YES
        if not label and not ignored:
            raise InputError(f"{path}, line {number}: a box without label. Write its class, or leave out the column.")
        boxes.append({"label": None if ignored else label, "coordinates": values})
    return boxes


def _numbers(where: str, cells: Mapping[str, str]) -> list[float]:
    try:
        numbers = [float(cell) for cell in cells.values()]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{where}: found {_shown(cells)}. Expected a number in each, or nothing in all of them.")
    return numbers


def _corners(where: str, cells: Mapping[str, str]) -> list[float]:
    numbers = _numbers(where, cells)
    half = len(numbers) // 2
    if any(low > high for low, high in zip(numbers[:half], numbers[half:])):
        raise InputError(f"{where}: the box ends before it starts: {_shown(cells)}.")
    return numbers


def _sphere(where: str, cells: Mapping[str, str]) -> list[float]:
    """LPS to RAS."""
    x, y, z, diameter = _numbers(where, cells)
    return [-x, -y, z, diameter]


def _shown(cells: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {cell!r}" for name, cell in cells.items())
