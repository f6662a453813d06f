"""What is unlike its peers: the scans of one kind that lie in one folder, and folders among the folders beside them.

A folder of ten datasets has no usual size, and a folder per patient holds too few scans to tell. So scans are compared
within the smallest folder that holds enough of them, and that folder's usual value then stands for it among its
neighbours, up to the top.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from frepa.checks.findings import Finding
from frepa.checks.items import Item

# Below this many there is no telling which of them is odd
_ENOUGH = 10
# If more than this share is odd, the folder is mixed, and none of them is
_MOST_ODD = 0.1
_DEVIATIONS = 6.0  # robust standard deviations from the usual before anything is odd


@dataclass(frozen=True)
class _Measure:
    """What is compared.

    kind: of finding. factor: from the usual, before anything is odd at all. value: of a scan, ``None`` where unknown.
    words: from a value and the usual one.
    """

    kind: str
    factor: float
    value: Callable[[Item], Sequence[float] | None]
    words: Callable[[np.ndarray, np.ndarray], str]


@dataclass(frozen=True)
class _Peer:
    """A scan, or a folder in which ``count`` scans are alike."""

    name: str
    record: int
    values: np.ndarray
    count: int = 1


def _span(item: Item) -> Sequence[float] | None:
    # A slice's own range says nothing of its volume's; Hounsfield units have rules of their own
    if item.of_slices or item.first.hu:
        return None
    low, _, high = item.first.percentiles
    return [high - low] if high > low else None


# Extents and spacings sorted, so that volumes in another orientation are not odd for that alone
_MEASURES = (
    _Measure(
        "spacing",
        2.0,
        lambda item: sorted(item.first.spacing) or None,
        lambda here, usual: f"{_shown(here, 3)} mm, usually about {_shown(usual, 3)} mm",
    ),
    _Measure(
        "size",
        3.0,
        lambda item: sorted(map(float, item.first.size)),
        lambda here, usual: f"{_shown(here)}, usually about {_shown(usual)} (sorted)",
    ),
    _Measure("intensity", 8.0, _span, lambda here, usual: f"values span {here[0]:.4g}, usually about {usual[0]:.4g}"),
)


def unlike_their_peers(items: Iterable[Item]) -> Iterable[Finding]:
    """Outliers in voxel size, extent, range of values and orientation, among scans of one modality.

    Constant scans and label maps take no part.
    """
    kinds: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        if not item.constant and not item.is_labels:
            kinds.setdefault((item.first.modality, len(item.first.size)), []).append(item)
    for alike in kinds.values():
        for measure in _MEASURES:
            yield from _compare(alike, measure)
        yield from _turned(alike)


def _compare(items: Sequence[Item], measure: _Measure) -> Iterable[Finding]:
    waiting: dict[str, list[_Peer]] = {}
    for item in items:
        value = measure.value(item)
        if value is not None:
            peer = _Peer(item.name, item.picture(), np.array(value, np.float64))
            waiting.setdefault(item.folder, []).append(peer)
    while waiting:
        folder = max(waiting, key=lambda name: (name.count("/") if name else -1, name))  # the deepest one
        peers = waiting.pop(folder)
        if len(peers) >= _ENOUGH:
            yield from _odd(peers, folder, measure)
            values = np.median([peer.values for peer in peers], axis=0)
            peers = [_Peer(f"{folder}/", peers[0].record, values, sum(peer.count for peer in peers))]
        above = posixpath.dirname(folder)
        if above != folder:  # the top is "", or "/" where a manifest names files absolutely
            waiting.setdefault(above, []).extend(peers)


def _odd(peers: Sequence[_Peer], folder: str, measure: _Measure) -> Iterable[Finding]:
    values = np.stack([peer.values for peer in peers])
    odd = np.flatnonzero(outlying(values, measure.factor))
    if len(odd) > max(1, _MOST_ODD * len(peers)):
        return
    usual = np.median(values, axis=0)
    for place in odd:
        peer = peers[int(place)]
        message = measure.words(peer.values, usual) + (f" in {folder}/" if folder else "")
        if peer.count > 1:
            message = f"{peer.count} scans here: {message}"
        yield Finding(measure.kind, peer.name, message, record=peer.record)


def outlying(values: np.ndarray, factor: float) -> np.ndarray:
    """Rows of ``(n, k)`` positive numbers in which one is more than ``factor`` times larger or smaller than usual.

    It also has to be more than six robust standard deviations away: ``(n,)`` bool.
    """
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    distance = np.abs(logs - np.median(logs, axis=0))
    spread = 1.4826 * np.median(distance, axis=0)
    return np.asarray((distance > np.maximum(np.log(factor), _DEVIATIONS * spread)).any(axis=1))


def _turned(items: Sequence[Item]) -> Iterable[Finding]:
    counts = Counter(item.first.orientation for item in items if item.first.orientation)
    known = sum(counts.values())
    if known < _ENOUGH:
        return
    usual, most = counts.most_common(1)[0]
    if most < 0.8 * known:
        return
    for item in items:
        code = item.first.orientation
        if code and code != usual:
            yield Finding("orientation", item.name, f"stored as {code}, usually {usual}", record=item.picture())


def _shown(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in values)
