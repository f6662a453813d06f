"""Rows that differ from one recipe by an option each: what to pretrain, and under which names to compare it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from frepa.errors import InputError, nearest
from frepa.images.anonymity import pseudonym
from frepa.names import shown

#: Named sets of rows: option differences by name. The first row of each is the recipe itself.
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    # Frepa Table 9
    "table9": {
        "default": {},
        "w/o HM": {"method": {"high_mask": False}},
        "w/o LP": {"method": {"low_noise": False}},
        "w/o FM": {"method": {"frequency_probability": 0.0}},
        "w/o IM": {"method": {"mask_noise": "zero"}},
        "w/o HFL": {"method": {"hfl_weight": 0.0}},
        "w/o ConL": {"method": {"consistency_weight": 0.0}},
        "w/o GradL": {"method": {"gradient_weight": 0.0}},
    },
    "guide": {
        "default": {},
        "guide: none": {"guide": "none"},
        "guide: target": {"guide_as": "target"},
        "guide: dark ridges": {"guide": "frangi_dark"},
        "guide: hessian": {"guide": "hessian"},
    },
    "consistency": {
        "default": {},
        "consistency: none": {"method": {"consistency_weight": 0.0}},
        "consistency: mean": {"method": {"consistency_weight": 0.5}},
        "consistency: sum": {"method": {"consistency_weight": 0.5, "consistency_reduction": "sum"}},
        "consistency: temperature 0.1": {"method": {"consistency_weight": 0.5, "consistency_temperature": 0.1}},
        "consistency: standardised": {"method": {"consistency_weight": 0.5, "consistency_standardise": True}},
        "consistency: from epoch 5": {"method": {"consistency_weight": 0.5, "consistency_start_epoch": 5}},
        "consistency: teacher": {"method": {"consistency_weight": 0.5, "teacher": True}},
    },
    "masks": {
        "default": {},
        "masks: half of the image": {"method": {"mask_ratio": 0.5}},
        "masks: 0.9 of the image": {"method": {"mask_ratio": 0.9}},
        "masks: image patches of 8": {"method": {"image_patch": 8}},
        "masks: image patches of 16": {"method": {"image_patch": 16}},
        "masks: image patches of 32": {"method": {"image_patch": 32}},
        "masks: spectrum patches of 2": {"method": {"spectrum_patch": 2}},
        "masks: spectrum patches of 8": {"method": {"spectrum_patch": 8}},
        "masks: spectrum patches of 16": {"method": {"spectrum_patch": 16}},
    },
}
_KEYS = ("source", "options", "rows", "seeds")
_OWN = ("source", "out", "seed", "anonymous_names", "resume", "overwrite", "quiet")


@dataclass(frozen=True)
class Pretraining:
    """One encoder to pretrain: row, seed, source, the options of ``frepa pretrain``, and the name of its folder."""

    row: str
    seed: int
    source: str
    options: Mapping[str, Any]
    folder: str


def read_ablation(
    content: Mapping[str, Any], name: str, known: Mapping[str, Any], *, anonymous_names: bool = False
) -> list[Pretraining]:
    """What a study's key ``pretrain`` asks for.

    Args:
        content: of the study. name: of its file. known: the options of ``frepa pretrain``, by name.
        anonymous_names: hashes stand for names of files in what the rows write.

    Raises:
        InputError: nothing to pretrain, a word or option that is not known.
    """
    given = content.get("pretrain")
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"{name}: no key pretrain. An ablation needs one, as in `pretrain: {{source: IMAGES, options: {{encoder: "
            "vit_tiny, max_steps: 1000}, rows: table9}`."
        )
    for key in given:
        if key not in _KEYS:
            raise InputError(f"{name}: pretrain: {shown(str(key))} is no word of it. {nearest(str(key), _KEYS)}")
    source = given.get("source")
    if not isinstance(source, str) or not source.strip():
        raise InputError(f"{name}: pretrain: source: expected a folder of images or another source.")
    recipe = _options(given.get("options"), f"{name}: pretrain: options", known)
    seeds = given.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= 100:
        raise InputError(f"{name}: pretrain: seeds: expected a number from 1 to 100, found {shown(repr(seeds))[:40]}.")
    found = []
    for row, change in _rows(given.get("rows", "table9"), name).items():
        options = _merged(recipe, _options(change, f"{name}: row {shown(row)}", known))
        if anonymous_names:
            options["anonymous_names"] = True
        for seed in range(seeds):
            found.append(Pretraining(row, seed, source, options, _folder(row, seed, source, options)))
    return found


def _rows(given: Any, name: str) -> dict[str, Mapping[str, Any]]:
    """Rows by name; of several named sets their union, the recipe itself once."""
    if isinstance(given, Mapping):
        if not given or not all(change is None or isinstance(change, Mapping) for change in given.values()):
            raise InputError(f"{name}: pretrain: rows: expected names with options that differ, such as `w/o HFL: "
                             "{method: {hfl_weight: 0}}`.")  # fmt: skip
        return {str(row): change or {} for row, change in given.items()}
    rows: dict[str, Mapping[str, Any]] = {}
    for one in given if isinstance(given, list) else [given]:
        if one not in ROWS:
            raise InputError(f"{name}: pretrain: rows: {shown(repr(one))[:40]} is not known. {nearest(str(one), ROWS)}")
        rows |= ROWS[one]
    if not rows:
        raise InputError(f"{name}: pretrain: rows: none is given. Known sets: {', '.join(ROWS)}.")
    return rows


def _options(given: Any, where: str, known: Mapping[str, Any]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: expected options of frepa pretrain with their values.")
    options = {str(key).replace("-", "_"): value for key, value in given.items()}
    for key in options:
        if key in _OWN:
            raise InputError(f"{where}: {key} is decided by the study itself; take it out of the options.")
        if key not in known:
            raise InputError(f"{where}: {shown(key)} is no option of pretrain. {nearest(key, known)}")
    if "method" in options:
        method = options["method"]
        options["method"] = {"name": method} if isinstance(method, str) else dict(method or {})
    return options


def _merged(recipe: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with what differs; options of the method one by one."""
    options = {**recipe, **change}
    if "method" in recipe or "method" in change:
        options["method"] = {"name": "frepa", **recipe.get("method", {}), **change.get("method", {})}
    return options


def _folder(row: str, seed: int, source: str, options: Mapping[str, Any]) -> str:
    text = json.dumps([source, options], sort_keys=True, default=str)
    if options.get("anonymous_names"):  # or whoever has an idea of the source could try it
        text = pseudonym(text)
    slug = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-") or "row"
    return f"{slug}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}-s{seed}"


def with_encoders(
    content: Mapping[str, Any], planned: list[Pretraining], place: Callable[[str], str]
) -> dict[str, Any]:
    """The study to compare: its own encoders after the pretrained rows, against the first of which all are tested."""
    rows: dict[str, list[str]] = {}
    for one in planned:
        rows.setdefault(one.row, []).append(place(one.folder))
    study = {key: value for key, value in content.items() if key != "pretrain"}
    study["encoders"] = {**rows, **(content.get("encoders") or {})}
    study.setdefault("reference", planned[0].row)
    return study
