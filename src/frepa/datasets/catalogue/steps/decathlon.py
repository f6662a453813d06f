"""What ``dataset.json`` says (modality and label names) and ``splits_final.json`` (nnU-Net's folds)."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.catalogue.patterns import stem_of
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.nnunet_files import folds_of, label_names, read_json

_MODALITY = {"ct": "CT", "mri": "MRI", "mr": "MRI"}
_MR_SEQUENCES = ("t1", "t2", "flair", "adc", "dwi", "mri", "mr", "lge")


@register("decathlon")
def decathlon(context: Context, *, folder: str = "task") -> None:
    """Read every ``dataset.json`` and ``splits_final.json`` beside the images: ``modality``, ``fold``, label names.

    The label names go to the table's facts: ``label_names: {folder: {1: name}}``, and ``values`` where they are of one
    folder.

    Args:
        folder: the named part of the image path that holds the folder of ``dataset.json``.
    """
    records = context.records
    described: dict[str, dict] = {}
    for path, parts, _ in context.index.matches(["**/{folder}/dataset.json"]):
        records.used.add(path)
        described[parts["folder"].casefold()] = read_json(Path(context.index.absolute(path)))
    missing = set()
    for i, fields in enumerate(records.fields):
        name = fields.get(folder) or ""
        about = described.get(name.casefold())
        if about is None:
            missing.add(name)
            continue
        records.columns["modality"][i] = _modality(about) or records.columns["modality"][i]
    names = {
        name: label_names(described[name.casefold()])
        for name in sorted({fields.get(folder) or "" for fields in records.fields})
        if name.casefold() in described
    }
    records.facts["label_names"] = names
    if len(names) == 1 and not missing:
        (records.facts["values"],) = names.values()
    _fold(context)
    if missing:
        records.problems.append(f"no dataset.json in {', '.join(sorted(missing))}: label names unknown")


def _fold(context: Context) -> None:
    """The fold each case is tested in, where nnU-Net's list lies beside ``imagesTr``."""
    records = context.records
    known: dict[Path, dict[str, int]] = {}
    for path, _, _ in context.index.matches(["**/splits_final.json"]):
        records.used.add(path)
        folder = Path(context.index.absolute(path)).parent
        known[folder] = folds_of(folder)
    for i, relative in enumerate(records.relative):
        file = Path(context.index.absolute(relative))
        of_case = known.get(file.parent.parent, {})
        records.columns["fold"][i] = of_case.get(stem_of(file.name).removesuffix("_0000"), records.columns["fold"][i])


def _modality(about: dict) -> str | None:
    channels = about.get("modality") or about.get("channel_names") or {}
    for name in map(str, channels.values() if isinstance(channels, dict) else [channels]):
        first = name.strip().casefold()
        if first in _MODALITY:
            return _MODALITY[first]
        if first.startswith(_MR_SEQUENCES):
            return "MRI"
    return None
