"""What a decathlon-style ``dataset.json`` says: modality, channel names and label names."""

from __future__ import annotations

import json

from frepa.datasets.catalogue.steps import Context, register
from frepa.errors import InputError

_MODALITY = {"ct": "CT", "mri": "MRI", "mr": "MRI"}
_MR_SEQUENCES = ("t1", "t2", "flair", "adc", "dwi", "mri", "mr", "lge")


@register("decathlon")
def decathlon(context: Context, *, folder: str = "task") -> None:
    """Read every ``dataset.json`` beside the images: sets ``modality``, and per folder the label names.

    The label names go to the table's facts: ``label_names: {folder: {1: name}}``.

    Args:
        folder: the named part of the image path that holds the folder of ``dataset.json``.
    """
    records = context.records
    described: dict[str, dict] = {}
    for path, parts, _ in context.index.matches(["**/{folder}/dataset.json"]):
        records.used.add(path)
        try:
            with open(context.index.absolute(path), encoding="utf-8") as file:
                described[parts["folder"].casefold()] = json.load(file)
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}).") from error
    missing = set()
    for i, fields in enumerate(records.fields):
        name = fields.get(folder) or ""
        about = described.get(name.casefold())
        if about is None:
            missing.add(name)
            continue
        records.columns["modality"][i] = _modality(about) or records.columns["modality"][i]
    records.facts["label_names"] = {
        name: {str(value): str(label) for value, label in _labels(described[name.casefold()]).items()}
        for name in sorted({fields.get(folder) or "" for fields in records.fields})
        if name.casefold() in described
    }
    if missing:
        records.problems.append(f"no dataset.json in {', '.join(sorted(missing))}: label names unknown")


def _labels(about: dict) -> dict:
    """Label value -> name; the decathlon writes it so, nnU-Net's second version the other way round."""
    labels = about.get("labels") or {}
    if all(str(key).lstrip("-").isdigit() for key in labels):
        return labels
    return {value: name for name, value in labels.items() if not isinstance(value, list)}


def _modality(about: dict) -> str | None:
    channels = about.get("modality") or about.get("channel_names") or {}
    for name in map(str, channels.values() if isinstance(channels, dict) else [channels]):
        first = name.strip().casefold()
        if first in _MODALITY:
            return _MODALITY[first]
        if first.startswith(_MR_SEQUENCES):
            return "MRI"
    return None
