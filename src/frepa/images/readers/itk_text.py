"""The text headers of MetaImage and NRRD files: what they claim, before any library believes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from frepa.images.scan import UnreadableScan

_MOST_HEADER = 2**20
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_META_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NRRD_BYTES = {
    1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t",
    2: "short, short int, signed short, signed short int, int16, int16_t, "
    "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float",
    8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, "
    "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t, double",
}


@dataclass(frozen=True)
class DataFile:
    """Shape (last axis fastest, components left out), bytes once decompressed, and the files that hold them."""

    shape: tuple[int, ...]
    nbytes: int
    files: tuple[Path, ...]
    compressed: bool
    binary: bool = True


def data_file(path: Path) -> DataFile:
    """What the header of a .mha, .mhd, .nrrd or .nhdr file claims. Raises `UnreadableScan` where it makes no sense."""
    with open(path, "rb") as file:
        head = file.read(_MOST_HEADER)
    if path.suffix.lower() in (".mha", ".mhd"):
        return _meta(path, head)
    return _nrrd(path, head)


def _meta(path: Path, head: bytes) -> DataFile:
    fields: dict[str, str] = {}
    for line in head.split(b"\n", 400)[:400]:
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            break
    if "dimsize" not in fields or "elementdatafile" not in fields:
        raise UnreadableScan(str(path), "not a MetaImage file, or a damaged header", kind="damaged")
    shape = _numbers(path, fields["dimsize"])[::-1]
    kind = fields.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _META_BYTES:
        raise UnreadableScan(str(path), "damaged header (its type of values is unknown)", kind="damaged")
    channels = _numbers(path, fields.get("elementnumberofchannels", "1"))[0]
    _check_channels(path, channels)
    where = fields["elementdatafile"]
    if fields.get("ndims") and _numbers(path, fields["ndims"])[0] != len(shape):
        raise UnreadableScan(str(path), "damaged header (NDims and DimSize do not agree)", kind="damaged")
    files: tuple[Path, ...]
    if where.upper() == "LOCAL":
        files = (path,)
    elif where.upper().startswith("LIST") or "%" in where:
        raise UnreadableScan(str(path), "spreads its voxels over a list of files, which is not supported; join them")
    else:
        files = (path.parent / where,)
    binary = fields.get("binarydata", "true").lower() in ("true", "1")
    compressed = fields.get("compresseddata", "false").lower() in ("true", "1")
    return DataFile(shape, _product(shape) * channels * _META_BYTES[kind], files, compressed, binary)


def _nrrd(path: Path, head: bytes) -> DataFile:
    if not head.startswith(b"NRRD"):
        raise UnreadableScan(str(path), "not an NRRD file, or a damaged header", kind="damaged")
    fields: dict[str, str] = {}
    for line in head.split(b"\n", 400)[1:400]:
        text = line.decode("latin-1").strip()
        if not text:
            break
        key, colon, value = text.partition(":")
        if colon and not text.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    if "sizes" not in fields or "type" not in fields:
        raise UnreadableScan(str(path), "damaged header (no sizes, or no type of values)", kind="damaged")
    sizes = _numbers(path, fields["sizes"])
    if fields.get("dimension") and _numbers(path, fields["dimension"])[0] != len(sizes):
        raise UnreadableScan(str(path), "damaged header (dimension and sizes do not agree)", kind="damaged")
    kind = fields["type"].lower()
    nbytes = next((n for n, names in _NRRD_BYTES.items() if kind in names.split(", ")), 0)
    if not nbytes:
        raise UnreadableScan(str(path), "damaged header (its type of values is unknown)", kind="damaged")
    kinds = fields.get("kinds", "").lower().split()
    spatial = list(sizes)
    if len(kinds) == len(sizes) and len(sizes) > 1:
        # SimpleITK takes an axis that is not of space for the components of a voxel, wherever it is
        other = [i for i, name in enumerate(kinds) if name not in ("domain", "space", "time")]
        if len(other) == 1:
            _check_channels(path, spatial.pop(other[0]))
    where = fields.get("data file", fields.get("datafile"))
    if where is not None and (where.upper().startswith("LIST") or "%" in where):
        raise UnreadableScan(str(path), "spreads its voxels over a list of files, which is not supported; join them")
    files = (path,) if where is None else (path.parent / where,)
    encoding = fields.get("encoding", "raw").lower()
    return DataFile(
        tuple(spatial[::-1]),
        _product(sizes) * nbytes,
        files,
        encoding in ("gzip", "gz", "bzip2", "bz2"),
        encoding not in ("text", "txt", "ascii", "hex"),
    )


def _numbers(path: Path, text: str) -> tuple[int, ...]:
    words = text.split()
    if not words or len(words) > 16 or not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words):
        raise UnreadableScan(str(path), "damaged header (a size is not a whole number)", kind="damaged")
    return tuple(int(word) for word in words)


def _check_channels(path: Path, channels: int) -> None:
    if not 1 <= channels <= 4096:
        raise UnreadableScan(str(path), f"damaged header ({channels} values per voxel)", kind="damaged")


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
