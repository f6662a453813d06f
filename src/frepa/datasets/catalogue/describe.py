"""The catalogue as text: a table of many datasets, a page about one, a layout as a tree."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from frepa.datasets.catalogue.entry import Entry

_WIDTH = 100
_ROLES = {
    "pretraining": "pretraining",
    "downstream": "tasks",
    "both": "pretraining and tasks",
    "extra": "not in the paper",
}
_PRINTED = {
    "mae": "MAE",
    "frepa_vit": "Frepa ViT",
    "frepa_swint": "Frepa Swin",
    "frepa_convnext": "Frepa ConvNeXt",
    "mae_3d": "3D MAE",
    "frepa3d_vit": "3D Frepa ViT",
    "frepa3d_swint": "3D Frepa Swin",
    "frepa3d_convnext": "3D Frepa ConvNeXt",
}


def list_text(entries: Sequence[Entry]) -> str:
    """One line per dataset: id, modality, dims, role in the paper, access, images."""
    head = ("id", "modality", "dims", "role", "access", "images")
    rows = [
        (e.id, e.modality, f"{e.dims}D", e.role, e.access, "" if e.images is None else f"{e.images:,}") for e in entries
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(w) if i == 5 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in [head, *rows]
    ]
    foot = f"{len(entries)} datasets; images as the paper counts them, else as released. frepa datasets show ID: more."
    return "\n".join([*lines, "", foot])


def show_text(entry: Entry) -> str:
    """Everything the catalogue knows of one dataset; what was not verified says so."""
    facts = {
        "modality": f"{entry.modality}, {entry.dims}D",
        "in the paper": _in_paper(entry),
        "access": entry.access + (f" ({entry.access_note})" if entry.access_note else ""),
        "where": ", ".join([entry.homepage or "no address", *entry.mirrors]),
        "licence": _doubt(entry.licence.get("name", "unknown"), entry.licence.get("status")),
        "files": ", ".join(entry.formats),
        "labels": _labels(entry.labels),
        "split": entry.split,
        "CT window": entry.window or "",
    }
    out = [f"{entry.name}  [{entry.id}]", *_wrapped(entry.summary), ""]
    for name, text in facts.items():
        if text:
            out += _wrapped(text, f"{name:<14}", " " * 14)
    out += ["", "Layout" + ("" if entry.layout else ": not known; images of these endings are taken from any folder")]
    out += tree_lines(entry.layout)
    if entry.confidence in ("low", "medium"):
        out += [f"(confidence in this layout: {entry.confidence})"]
    out += ["", "Use", f"  frepa datasets verify {entry.id} FOLDER", f"  SOURCE: {entry.id}:FOLDER"]
    for name, about in {"split": {"about": "one part", "values": ["train", "val", "test"]}, **entry.options}.items():
        values = f" ({', '.join(map(str, about['values']))})" if about.get("values") else ""
        out += _wrapped(f"{about.get('about', '')}{values}", f"          {entry.id}?{name}=...:FOLDER  ", " " * 12)
    if entry.downloads:
        out.append(f"  frepa datasets fetch {entry.id} --out FOLDER" + _choices(entry))
    if entry.counts:
        out += ["", "A complete copy holds"]
        for count in entry.counts:
            words = "".join(f", {name} {value}" for name, value in count.where.items())
            text = f"{count.n:,} {count.of}{words}" + (f" ({count.note})" if count.note else "")
            out.append("  " + _doubt(text, count.status))
    if entry.paper_tasks:
        out += ["", "The paper's tasks on it, and the means it prints"]
        for task in entry.paper_tasks:
            out += _wrapped(_task(task), "  ", "    ")
    for title, texts in {
        "Known of it": entry.facts,
        "Mind": entry.pitfalls,
        "In the paper": entry.paper.get("notes", []),
        "The same images are in": [
            f"{o['with']}: {_doubt(o['why'], o['status'])}" for o in entry.overlaps if o["with"] != entry.id
        ],
    }.items():
        if texts:
            out += ["", title]
            for text in texts:
                out += _wrapped(text, "  - ", "    ")
    out += ["", *_wrapped(f"Sources: {', '.join(entry.sources)}.")]
    return "\n".join(out)


def tree_lines(layout: Mapping[str, str]) -> list[str]:
    """Example paths as a tree, each file's comment beside it.

    ``{"a/b.png": "an image"}`` gives ``["a/", "└── b.png  an image"]``.
    """
    root: dict[str, Any] = {}
    for path, comment in layout.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder + "/", {})
        node[name] = comment
    lines: list[tuple[str, str]] = []

    def draw(node: dict[str, Any], before: str, top: bool) -> None:
        for number, (name, below) in enumerate(node.items()):
            last = number == len(node) - 1
            lead = "" if top else before + ("└── " if last else "├── ")
            lines.append((lead + name, below if isinstance(below, str) else ""))
            if isinstance(below, dict):
                draw(below, "" if top else before + ("    " if last else "│   "), False)

    draw(root, "", True)
    width = min(max((len(text) for text, _ in lines), default=0), 64)
    return [f"{text:<{width}}  {comment}".rstrip() for text, comment in lines]


def _in_paper(entry: Entry) -> str:
    if entry.role == "extra":
        return "no"
    tables = " and ".join(f"Table {n}" for n in entry.paper.get("tables", []))
    parts = [f"{_ROLES[entry.role]} ({tables})" if tables else _ROLES[entry.role]]
    if entry.paper.get("images"):
        parts.append(f"{entry.paper['images']:,} images")
    if entry.paper.get("modality"):
        parts.append(f"filed under {entry.paper['modality']}")
    return ", ".join(parts)


def _labels(labels: Mapping[str, Any]) -> str:
    if not labels:
        return "none"
    names = labels.get("names", [])
    if isinstance(names, Mapping):
        names = [f"{value} {name}" for value, name in names.items()]
    text = labels.get("kind", "") + (f": {', '.join(map(str, names))}" if names else "")
    return _doubt(text, labels.get("status")) + (f"; {labels['note']}" if labels.get("note") else "")


def _task(task: Mapping[str, Any]) -> str:
    of = " ".join(str(task[key]) for key in ("input", "target") if key in task)
    printed = "; ".join(
        f"{metric} " + ", ".join(f"{_PRINTED.get(model, model)} {value}" for model, value in values.items())
        for metric, values in task.get("printed", {}).items()
    )
    note = f" ({task['note']})" if task.get("note") else ""
    return f"{task['id']}: {task['type']}, {task['dims']}D{', ' + of if of else ''}. {printed}{note}"


def _choices(entry: Entry) -> str:
    """How to pick among several files."""
    selects = [download.select for download in entry.downloads if download.select]
    if not selects or all(download.default for download in entry.downloads):
        return ""
    name, value = next(iter(selects[-1].items()))
    return f" [--only {name}={value}]"


def _doubt(text: str, status: str | None) -> str:
    return f"{text} (not verified)" if status == "recalled" else text


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
