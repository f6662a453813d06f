"""What a run trains on, remembered beside it, so that a continued run says what was added, removed or altered.

Names may tell who was scanned, so the record holds keyed hashes of them (see `frepa.images.anonymity`): a file that is
there can be recognised, one that is gone can be counted and its folder named, and nobody else can read anything.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from frepa.errors import InputError
from frepa.files import write_bytes
from frepa.images.anonymity import key_check, pseudonym
from frepa.images.source import Source

_SHOWN = 5


def check_source(path: Path, source: Source, *, resumed: bool, accept: bool, fingerprint: str | None = None) -> None:
    """Compare ``source`` with what the run was begun on, and remember it.

    Args:
        path: of the record; made where there is none.
        source: as it is now.
        resumed: the run is continued.
        accept: go on with a source that has changed.
        fingerprint: of the source at the newest state, for runs that have no record.

    Raises:
        InputError: the source has changed; says in what.
    """
    if resumed and not accept:
        known = _read(path)
        before = str(known["fingerprint"]) if known else fingerprint
        if before is not None and before != source.fingerprint:
            said = _changes(known, source) if known else f"it has {len(source):,} records now"
            raise InputError(
                f"--resume: {source.location} is not what the run was begun on: {said}. Put it back as it was, or add "
                "--accept-changed-source to go on with it as it is, in a new order of samples."
            )
    write_bytes(path, _packed(source))


def _packed(source: Source) -> bytes:
    columns: dict[str, Any] = {
        "fingerprint": np.array(source.fingerprint),
        "records": np.array(len(source)),
        "key": np.array(key_check()),
        **_hashes(source),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    return buffer.getvalue()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError):
        raise InputError(
            f"--resume: {path} is damaged, so nobody knows what the run was begun on. Add --accept-changed-source to "
            "go on with the source as it is."
        ) from None


def _hashes(source: Source) -> dict[str, np.ndarray]:
    """Of every file: hash of its name and of its folder's, ``(n,)`` uint64, and its size in bytes, ``(n,)`` int64."""
    listing = source.listing()
    if listing is None:
        return {}
    key = bytes.fromhex(pseudonym("names in the record of a source"))
    names, parents, sizes = bytearray(), bytearray(), array("q")
    folders: dict[str, bytes] = {}
    for name, size in listing:
        names += _hash(name, key)
        sizes.append(size)
        folder = name.rpartition("/")[0]
        known = folders.get(folder)
        if known is None:
            known = folders[folder] = _hash(folder, key)
        parents += known
    return {
        "names": np.frombuffer(names, "<u8"),
        "folders": np.frombuffer(parents, "<u8"),
        "sizes": np.array(sizes, np.int64),
    }


def _hash(name: str, key: bytes) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=key).digest()


def _changes(before: dict[str, np.ndarray], source: Source) -> str:
    """In words."""
    listing, now = source.listing(), _hashes(source)
    counts = f"{int(before['records']):,} records then, {len(source):,} now"
    if listing is None or "names" not in before or str(before["key"]) != key_check():
        return counts
    names = np.array([name for name, _ in listing], object)
    added = ~np.isin(now["names"], before["names"])
    removed = ~np.isin(before["names"], now["names"])
    order = np.argsort(before["names"])
    place = np.minimum(np.searchsorted(before["names"], now["names"], sorter=order), len(order) - 1)
    altered = ~added & (before["sizes"][order[place]] != now["sizes"])
    parts = []
    for word, chosen in (("added", added), ("altered", altered)):
        if chosen.any():
            parts.append(f"{int(chosen.sum()):,} {word} ({_some(names[chosen])})")
    if removed.any():
        known = dict(zip(now["folders"].tolist(), (name.rpartition("/")[0] or "the top folder" for name in names)))
        places = sorted({known.get(folder, "a folder that is gone") for folder in before["folders"][removed].tolist()})
        parts.append(f"{int(removed.sum()):,} removed (from {_some(places)})")
    return f"{'; '.join(parts) or 'its labels, groups or columns were altered'} ({counts})"


def _some(names: Any) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
