"""Volumes and their label volumes in one HDF5 file."""

from __future__ import annotations

from typing import Any

import h5py

from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import group_value
from frepa.errors import InputError


@register("hdf5")
def hdf5(
    context: Context,
    *,
    patterns: list[str],
    image: str,
    masks: dict[str, str],
    slices: bool = False,
    group: str | None = None,
) -> None:
    """One record per volume, ``file.hdf#volumes/raw``, or per section, ``file.hdf#volumes/raw[12]``.

    Args:
        patterns: of the files; tried in order, the first that finds any is used.
        image: dataset inside the file, (z, y, x).
        masks: target -> dataset of the same file. A label volume that covers part of the image (attribute ``offset`` in
            world units, as in CREMI's padded files) is joined to the sections it covers.
        slices: records are sections, 2D.
        group: template of the specimen.
    """
    records = context.records
    default = context.options.get("target", next(iter(masks), ""))
    records.facts.update(targets=list(masks), target=default)
    found = next((hits for text in patterns if (hits := list(context.index.matches([text])))), [])
    for path, parts, _ in found:
        absolute = context.index.absolute(path)
        try:
            with h5py.File(absolute, "r") as file:
                if image not in file:
                    records.problems.append(f"{path} has no dataset {image}")
                    continue
                depth = file[image].shape[0]
                ranges = {target: _covered(file, image, key) for target, key in masks.items() if key in file}
        except OSError as error:
            raise InputError(
                f"{absolute} cannot be read as HDF5: is it cut short? Download it again. ({error})"
            ) from error
        row: dict[str, Any] = {"modality": context.modality, "dims": 2 if slices else 3}
        row["group"] = group_value(context.dataset, group, path, parts)
        for position in range(depth) if slices else [None]:
            records.add(path, parts, {**row, "path": f"{absolute}#{image}" + _place(position)})
            for target, (first, length) in ranges.items():
                column = records.column("mask" if target == default else f"mask_{target}")
                if position is None:
                    column[-1] = f"{absolute}#{masks[target]}"
                elif first <= position < first + length:
                    column[-1] = f"{absolute}#{masks[target]}" + _place(position - first)


def _place(position: int | None) -> str:
    return "" if position is None else f"[{position}]"


def _covered(file: h5py.File, image: str, key: str) -> tuple[int, int]:
    """First section of the image that a label volume covers, and how many."""
    labels = file[key]
    resolution = file[image].attrs.get("resolution", labels.attrs.get("resolution"))
    offset = labels.attrs.get("offset")
    first = 0 if offset is None or resolution is None else round(float(offset[0]) / float(resolution[0]))
    return first, labels.shape[0]
