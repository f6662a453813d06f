"""The page about embeddings: all images as points in a plane, and some with those most like them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frepa.analysis.embedding_files import FACTS, Parts, vectors
from frepa.analysis.neighbours import Neighbours, look_at, principal_axes, tsne
from frepa.datasets.annotations import Annotations
from frepa.downstream.fitting import read_ahead
from frepa.encoders.reference import EncoderReference
from frepa.images.geometry import resize_pad
from frepa.images.intensity import Window, to_unit
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source
from frepa.report.maps import contact_sheet, scatter
from frepa.report.page import Page

# More points hide each other, and every pair of them is looked at.
_LOOKED_AT, _THUMBNAIL, _QUERIES, _NEAREST = 4000, 96, 8, 6


class Looked(NamedTuple):
    """The images that the page is about, spread evenly over the source.

    Attributes:
        records: of the source.
        vectors: ``(n, C)`` float32.
        found: see `Neighbours`.
        dense: shape of the maps that were written, None without.
    """

    records: np.ndarray
    vectors: np.ndarray
    found: Neighbours
    dense: list[int] | None


def look(parts: Parts, known: Annotations, records: np.ndarray) -> Looked:
    """Look at up to 4,000 of the rows written; ``records`` (rows,) ascending are those they are of."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(len(records), _LOOKED_AT)).astype(np.int64))
    table = parts.chosen(rows, ["label", "group", "embedding"])
    own = vectors(table["embedding"])
    # Slices of a volume are no neighbours of each other, whether or not its patient is known
    groups = [
        group if group is not None else known.source.file(record)
        for group, record in zip(table["group"].to_pylist(), records[rows].tolist())
    ]
    found = look_at(own, table["label"].to_pylist(), groups, queries=_QUERIES, nearest=_NEAREST)
    return Looked(records[rows], own, found, json.loads(table.schema.metadata[FACTS])["dense"])


def write_page(
    path: Path,
    summary: dict[str, Any],
    looked: Looked,
    source: Source,
    reference: EncoderReference,
    *,
    map: str,
    seed: int,
    window: Window,
    workers: int,
) -> None:
    """Write the page; the images it shows are read again."""
    found = looked.found
    page = Page(f"Embeddings by {reference.name}", f"{summary['source']}; guide channel: {reference.guide}")
    page.facts(
        {
            "Images": summary["images"],
            "Left out": summary["left_out"],
            "Channels": summary["channels"],
            "Image size": f"{summary['image_size']} {'pixels' if source.dims == 2 else 'voxels'}",
            "Encoder": reference.weights[:12],
            "Device": summary["device"],
        }
    )
    for sentence in summary["warnings"]:
        page.note(sentence, level="warning")
    page.section("Map")
    if map == "tsne":
        points, words = tsne(looked.vectors, seed), f"t-SNE of scikit-learn, seed {seed}: only nearness means anything"
    else:
        points, share = principal_axes(looked.vectors)
        words = f"The first two principal axes, with {100 * share[0]:.1f} and {100 * share[1]:.1f} % of the variance"
    spread = "" if len(points) == summary["images"] else f" of {summary['images']:,}, evenly spread"
    coloured = "coloured by class" if any(found.labels) else "whose classes are not known"
    page.figure(scatter(points, found.labels), f"{words}. {len(points):,} images{spread}, {coloured}.")
    page.section("Nearest neighbours")
    page.text(
        "On the left an image, then those most like it, of other patients or files alone: by the cosine between their "
        "embeddings, from which the mean of all is taken."
    )
    pictures = dict(_pictures(source, looked.records, found, window, workers))
    rows = [[pictures.get(place) for place in row] for row in found.rows]
    page.figure(contact_sheet(rows, _captions(found)), "With the class and the cosine.", wide=True)
    page.text(
        "A cosine near 1 between files that are not one patient's may be the same image twice; `frepa check` looks for "
        "that."
    )
    if found.scores:
        page.table(
            [{"What": name, "Images (%)": 100 * value} for name, value in found.scores.items()],
            caption="How often the nearest image of another patient or file has the same class, and how often an image "
            "drawn from these would.",
            digits=1,
        )
    page.section("How it was made")
    page.code("Encoder", json.dumps(reference.as_dict(), indent=2))
    page.save(path)


def _captions(found: Neighbours) -> list[list[str]]:
    words = []
    for row, cosines in zip(found.rows, found.similarities):
        names = [found.labels[place] or "" for place in row]
        words.append([names[0], *(f"{name} {cosine:.2f}".strip() for name, cosine in zip(names[1:], cosines[1:]))])
    return words


def _pictures(
    source: Source, records: np.ndarray, found: Neighbours, window: Window, workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Small pictures ``(C, H, W)`` uint8 of the images shown, by place; of volumes the middle slice."""

    def read(place: int) -> tuple[int, np.ndarray | None]:
        try:
            unit = to_unit(source.read(int(records[place])), window=window)
        except UnreadableScan:  # it could be read a while ago
            return place, None
        middle = unit if unit.ndim == 3 else unit[:, unit.shape[1] // 2]
        small = resize_pad(middle, (_THUMBNAIL, _THUMBNAIL))
        return place, np.rint(255 * small).astype(np.uint8)

    for place, picture in read_ahead(read, sorted({place for row in found.rows for place in row}), workers):
        if picture is not None:
            yield place, picture
