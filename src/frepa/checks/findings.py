"""What a check can find: kinds, how grave they are, what to do about them; and the table they are kept in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pyarrow import parquet

from frepa.files import write_atomically
from frepa.images.scan import Oddity, Trouble
from frepa.names import shown

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its level, what it means, and what to do."""

    level: str
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "crash": Kind(ERROR, "Reading it ends the process", "Take these files out, or convert them."),
    "truncated": Kind(ERROR, "Truncated, or damaged inside", "Copy or download these files again."),
    "empty": Kind(ERROR, "Empty or missing", "Copy or download these files again, or take them off the list."),
    "damaged": Kind(ERROR, "Damaged", "Copy or download these files again."),
    "nan": Kind(ERROR, "NaN or infinite values", "Export again, or replace the values; these scans are skipped."),
    "undecodable": Kind(ERROR, "No decoder", "Install what is named, or decompress the files."),
    "too large": Kind(ERROR, "Larger than the limit", "Raise the limit if the files are genuine."),
    "several arrays": Kind(
        ERROR,
        "Holds several arrays of images, and none is chosen for you",
        "Name one, `file.npz#train_images`, as a source of its own or in a manifest: one of them may be the test part.",
    ),
    "unreadable": Kind(ERROR, "Cannot be read", "See the reason of each file."),
    "split patient": Kind(
        ERROR, "One patient on two sides of a split", "Split by patient: scores on the test part would be too good."
    ),
    "split duplicate": Kind(
        ERROR, "The same pixels on two sides of a split", "Keep one of the files, or keep both on one side."
    ),
    "label conflict": Kind(ERROR, "The same pixels with different labels", "Find out which label is right."),
    "mask missing": Kind(ERROR, "Label file missing or unreadable", "Check the file names."),
    "mask size": Kind(ERROR, "Label file of another size than its image", "Resample the labels to the image."),
    "mask place": Kind(
        ERROR, "Label file lies elsewhere than its image", "Resample the labels to the image through world coordinates."
    ),
    "mask turned": Kind(
        NOTE,
        "Label file stored in another orientation than its image",
        "Nothing if both are read in canonical orientation, as frepa does by default; never compare stored arrays.",
    ),
    "looks like labels": Kind(
        WARNING,
        "Looks like a label map, not an image",
        "Leave label files out of a source of images, by a glob pattern or a manifest.",
    ),
    "constant": Kind(WARNING, "Constant: every value is the same", "These teach nothing; take them out."),
    "nearly constant": Kind(WARNING, "Nearly constant: 99 % of the values are equal", "Look at them."),
    "blank slice": Kind(NOTE, "Volumes with blank slices", "Usual at the ends of a volume."),
    "duplicate": Kind(WARNING, "Duplicates: the same pixels twice", "Keep one of each."),
    "ct without hu": Kind(
        WARNING,
        "CT that is not in Hounsfield units",
        "These are scaled by percentiles, not by windows. If a shift is known, say so in a manifest: unit HU, slope, "
        "intercept.",
    ),
    "hu assumed": Kind(
        NOTE,
        "Taken for Hounsfield units because of the values",
        "Give the modality in a manifest (CT or another) to be sure.",
    ),
    "hu mixed": Kind(
        WARNING,
        "Only some of the scans without a modality look like Hounsfield units",
        "Give the modality in a manifest: otherwise some are scaled by windows and some by percentiles.",
    ),
    "hu values": Kind(WARNING, "CT with unlikely values", "Check the rescale slope and intercept of these files."),
    "spacing": Kind(
        WARNING, "Voxel size unlike the others' beside them", "Check the headers; resample if they are right."
    ),
    "size": Kind(WARNING, "Size unlike the others' beside them", "Check that these are what the others are."),
    "tiny": Kind(WARNING, "Tiny: a side of less than 16", "Too small for most encoders; check that these are images."),
    "intensity": Kind(WARNING, "Range of values unlike the others' beside them", "Check the export of these files."),
    "orientation": Kind(
        NOTE, "Stored in another orientation than the others", "Nothing: volumes are turned when read."
    ),
    "geometry": Kind(NOTE, "Geometry worth a look", "See each file's note."),
    "not a file": Kind(ERROR, "Not a file but a pipe, a socket or a device", "Take these off the list."),
    "slices unreadable": Kind(
        ERROR, "Series of which some slices cannot be read", "Copy or download the files that are named again."
    ),
    "slices missing": Kind(
        WARNING, "Series with slices missing between the others", "Look for the missing files; volumes are used as is."
    ),
    "left out": Kind(NOTE, "Left out on purpose", "Nothing, if these are no images of the kind asked for."),
    "other": Kind(NOTE, "Other remarks", "See each file's note."),
}


@dataclass(frozen=True)
class Finding:
    """One thing found about one record.

    Attributes:
        kind: a key of `KINDS`.
        file: the record's name within the source.
        message: what was found, in plain words.
        other: another record it is about, e.g. the first of two duplicates.
        record: its number in the source; -1 for a file that is no record.
    """

    kind: str
    file: str
    message: str
    other: str = ""
    record: int = -1


def kind_of(trouble: Trouble | Oddity | Literal["crash"]) -> str:
    """The key of `KINDS` for what a reader says."""
    return "left out" if trouble == "other dims" else trouble


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """A parquet file with the columns ``level, kind, file, message, other, record``."""
    columns = {
        "level": pa.array([KINDS[finding.kind].level for finding in findings], pa.string()),
        "kind": pa.array([finding.kind for finding in findings], pa.string()),
        "file": pa.array([shown(finding.file) for finding in findings], pa.large_string()),
        "message": pa.array([shown(finding.message) for finding in findings], pa.large_string()),
        "other": pa.array([shown(finding.other) for finding in findings], pa.large_string()),
        "record": pa.array([finding.record for finding in findings], pa.int64()),
    }
    write_atomically(path, lambda temporary: parquet.write_table(pa.table(columns), os.path.abspath(temporary)))
