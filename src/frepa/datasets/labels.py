"""From the values in mask files to classes, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from frepa.errors import InputError

MAX_CLASSES = 256
# Resampled or JPEG-compressed two-valued masks hold nearly every grey level; real 8-bit label maps hold few.
_SUSPICIOUS = 64


@dataclass(frozen=True)
class LabelMap:
    """Which class a stored value means. Class 0 is the background.

    Attributes:
        values: the stored value of each class, ``values[0] = 0`` for the background; predictions are
            written with these values.
        threshold: with two classes, values above it are foreground; None compares values exactly.
        names: of each class, the background's first; () where nobody names them.
    """

    values: tuple[int, ...]
    threshold: float | None = None
    names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.values)

    def to_classes(self, mask: np.ndarray, name: str) -> np.ndarray:
        """Stored values ``(*S)`` to classes ``(*S)`` uint8; ``name`` is the file, for messages."""
        if self.threshold is not None:
            return (mask > self.threshold).astype(np.uint8)
        index = np.searchsorted(self.values, mask)
        index = np.minimum(index, len(self.values) - 1)
        wrong = np.asarray(self.values)[index] != mask
        if wrong.any():
            raise InputError(
                f"{name}: holds the value {mask[wrong].flat[0]:g}, which is none of the classes {list(self.values)}."
            )
        return index.astype(np.uint8)

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Classes ``(*S)`` to stored values ``(*S)``, uint8 or the smallest integer type that holds them."""
        table = np.asarray(self.values)
        return table.astype(np.min_scalar_type(int(table.max())))[classes]

    def describe(self) -> str:
        """The mapping in words, for the user to check."""
        if self.threshold is not None:
            shown = f" ({self.names[1]})" if self.names else ""
            return f"two classes: mask values above {self.threshold:g} are foreground{shown}"
        names = [f" {name}" for name in self.names] or [""] * self.classes
        pairs = ", ".join(f"{value} -> class {k}{name}" for k, (value, name) in enumerate(zip(self.values, names)))
        return f"{self.classes} classes (mask value -> class): {pairs}"


def binary_map(threshold: float, highest: int = 255) -> LabelMap:
    """Background and foreground; predictions are written as 0 and ``highest``."""
    return LabelMap((0, highest), threshold)


def label_map(found: Iterable[float], name: str, *, binary: bool = False, threshold: float | None = None) -> LabelMap:
    """The classes that the values of a set's masks stand for.

    Args:
        found: every value that occurs in the set's masks.
        name: the set, for messages.
        binary: the masks are two-valued by definition of the layout.
        threshold: the user's: values above it are foreground.

    Two values 0 and 1, or 0 and 255, are background and foreground. Other values are one class each, in ascending
    order; 0 is always the background.

    Raises:
        InputError: values that are no class labels, or nothing but background.
    """
    values = sorted(set(found))
    if threshold is not None:
        if not any(value > threshold for value in values):
            raise InputError(
                f"{name}: no mask value is above the threshold {threshold:g}; the highest is {values[-1]:g}."
            )
        return binary_map(threshold)
    if not any(values):
        raise InputError(f"{name}: every mask is empty (all values are 0), so there is nothing to learn.")
    if binary or set(values) <= {0, 1} or set(values) <= {0, 255} or set(values) <= {0, 1, 255}:
        highest = 1 if max(values) <= 1 else 255
        return binary_map(max(values) / 2 if binary else 0, highest)
    if any(value < 0 or value != int(value) for value in values):
        example = next(value for value in values if value < 0 or value != int(value))
        raise InputError(
            f"{name}: a mask holds the value {example:g}, and classes are whole numbers from 0 on. "
            "If the masks are soft (probabilities), give the limit of the foreground, e.g. --mask-threshold 0.5."
        )
    if len(values) > MAX_CLASSES or (max(values) <= 255 and len(values) > _SUSPICIOUS):
        raise InputError(
            f"{name}: the masks hold {len(values)} different values, too many for classes: they were probably "
            "resampled or compressed. If they mean foreground and background, give the limit, "
            "e.g. --mask-threshold 127."
        )
    return LabelMap(tuple(sorted({0, *(int(value) for value in values)})))


def agreed_maps(maps: dict[str, LabelMap]) -> dict[str, LabelMap]:
    """The maps of sets that are trained together, such that a class means the same in all.

    Two-class sets go together whatever their values are, and keep their own; sets with more classes must mean the same
    by a value, so their values are united.

    Raises:
        InputError: two-class and multi-class sets are mixed.
    """
    several = {name: item for name, item in maps.items() if item.threshold is None}
    two = [name for name in maps if name not in several]
    if several and two:
        raise InputError(
            f"{two[0]} has two classes and {next(iter(several))} has {next(iter(several.values())).classes}: "
            "sets that are trained together must have the same classes. Train them apart."
        )
    if not several:
        return maps
    values = tuple(sorted({value for item in several.values() for value in item.values}))
    named = {value: name for item in several.values() for value, name in zip(item.values, item.names)}
    united = LabelMap(values, names=tuple(named[value] for value in values) if len(named) == len(values) else ())
    return dict.fromkeys(maps, united)
