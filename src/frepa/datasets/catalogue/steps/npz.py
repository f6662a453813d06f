"""Stacks of images in one npz file, with keys per split, as MedMNIST stores them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import ClassNames
from frepa.errors import InputError

_SPLITS = ("train", "val", "test")


@register("npz")
def npz(
    context: Context,
    *,
    patterns: list[str],
    names: Mapping[object, str] | list[str],
    images: str = "{split}_images",
    labels: str = "{split}_labels",
    dims: int | None = None,
) -> None:
    """One record per image of a stack: ``path`` is ``file.npz#train_images[17]``.

    Of several files (28, 64, 128, 224 pixels) the largest is taken unless the option ``size`` names another: the part
    ``{size}`` of the pattern, 28 where a name has none.

    Args:
        patterns: of the file; a part ``{size}`` names the image size.
        names: label value -> class name.
        images: key of the image stack, uint8 (N, *S) or (N, H, W, 3).
        labels: key of the labels, integers (N,) or (N, 1), or (N, L) of 0 and 1.
        dims: 2 or 3.
    """
    found = {parts.get("size") or "28": path for path, parts, _ in context.index.matches(patterns)}
    if not found:
        return
    size = context.options.get("size") or max(found, key=int)
    if size not in found:
        have = ", ".join(sorted(found, key=int))
        raise InputError(f"No {context.dataset} file of size {size} in {context.index.root}; found size {have}.")
    if len(found) > 1 and "size" not in context.options:
        context.records.notes.append(f"sizes {', '.join(sorted(found, key=int))} found; {size} taken")
    context.records.used.update(found.values())
    class_names = ClassNames(names)
    for name in class_names.known:
        context.records.add_class(name)
    _read(context, found[size], size, class_names, images, labels, dims or context.dims)


def _read(context: Context, relative: str, size: str, names: ClassNames, images: str, labels: str, dims: int) -> None:
    path = context.index.absolute(relative)
    lengths = stack_lengths(Path(path))
    with np.load(path, allow_pickle=False) as file:
        for split in _SPLITS:
            image_key, label_key = images.format(split=split), labels.format(split=split)
            if image_key not in lengths:
                context.records.problems.append(f"{relative} has no array {image_key}")
                continue
            values = np.asarray(file[label_key]) if label_key in lengths else None
            if values is not None and len(values) != lengths[image_key]:
                raise InputError(f"{path}: {lengths[image_key]} images but {len(values)} labels in {label_key}.")
            for i in range(lengths[image_key]):
                row = {"path": f"{path}#{image_key}[{i}]", "modality": context.modality, "dims": dims, "split": split}
                if values is not None:
                    row |= _label(np.atleast_1d(values[i]), names)
                context.records.add(relative, {"size": size, "member": image_key, "row": str(i)}, row)


def _label(values: np.ndarray, names: ClassNames) -> dict[str, object]:
    if len(values) == 1:
        return {"label": names(int(values[0]))}
    return {"labels": [name for name in (names(i) for i in np.flatnonzero(values)) if name]}


def stack_lengths(path: Path) -> dict[str, int]:
    """First axis of every array of an npz file, from the headers alone.

    Raises:
        InputError: the file is no npz, or is cut short.
    """
    lengths = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape = read(member)[0]
                lengths[name.removesuffix(".npy")] = shape[0] if shape else 1
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as npz ({error}). Download it again.") from error
    return lengths
