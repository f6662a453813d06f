"""Masks as DICOM segmentations of the series they belong to, by highdicom (the extra ``frepa[dicom-seg]``)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frepa.errors import InputError
from frepa.files import write_atomically
from frepa.images.scan import UnreadableScan

# The private coding scheme of what a mask value means, as long as nobody says more of it than the value.
_SCHEME = "99FREPA"
_COMPANY = "frepa"
# Of the images; empty ones, as some that were made anonymous have, refer to nothing.
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")


def check_installed() -> None:
    """Raise InputError where highdicom is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise InputError(
            "--format dicom-seg needs the package highdicom. Install it with pip install 'frepa[dicom-seg]'."
        ) from None


def write_segmentation(
    path: Path,
    classes: np.ndarray,
    values: Sequence[int],
    slices: Sequence[tuple[Path, int]],
    *,
    version: str,
    heads: Sequence[str] = (),
) -> Path:
    """Write one segmentation object with a segment per class, whole or not at all.

    It belongs to the study of its images and refers to each of them. It therefore names the patient as they do: no
    archive would take it otherwise.

    Args:
        path: ends in ``.dcm``.
        classes: ``(D, H, W)`` uint8, 0 = background, rows and columns as the files have them.
        values: of every class, background first, as the training masks had them: they name the segments.
        slices: file of each of the D slices, and the frame in it.
        version: of this program.
        heads: hashes of the heads that made it; the same heads on the same images give the same identifiers.

    Raises:
        UnreadableScan: the images lack what a segmentation must repeat of them.
    """
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    files = list(dict.fromkeys(file for file, _ in slices))
    images = [pydicom.dcmread(file) for file in files]
    if len(files) == 1 and len(slices) > 1:
        frames = int(getattr(images[0], "NumberOfFrames", 1))
        if frames != len(slices):
            raise UnreadableScan(str(path), f"{frames} frames and {len(slices)} slices: several volumes in one file")
        ordered = np.zeros_like(classes)
        for place, (_, frame) in enumerate(slices):
            ordered[frame] = classes[place]
        classes = ordered
    present = np.unique(classes[classes > 0]).tolist()
    algorithm = hd.AlgorithmIdentificationSequence(
        name=_COMPANY, version=version, family=codes.DCM.ArtificialIntelligence
    )
    about = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"mask value {value}",
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=hd.sr.CodedConcept(str(value), _SCHEME, f"mask value {value}"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(values[1:], start=1)
    ]
    lacking = [name for name in _IDENTIFIERS if any(not str(image.get(name) or "") for image in images)]
    if lacking:
        raise UnreadableScan(
            str(path),
            f"no DICOM segmentation can be made of it: its files have no {' and no '.join(lacking)}, by which a "
            "segmentation says which images it belongs to; --format nifti or png can",
        )
    known = [str(image.SOPInstanceUID) for image in images]
    try:
        with warnings.catch_warnings():
            # It looks at how the patient's name is spelled, which is the archive's matter and not to be shown
            warnings.simplefilter("ignore", UserWarning)
            made: Any = hd.seg.Segmentation(
                source_images=images,
                pixel_array=classes,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=about,
                series_instance_uid=generate_uid(entropy_srcs=[*known, *heads, "series"]),
                series_number=9000,
                sop_instance_uid=generate_uid(entropy_srcs=[*known, *heads, "instance"]),
                instance_number=1,
                manufacturer=_COMPANY,
                manufacturer_model_name=_COMPANY,
                software_versions=version,
                device_serial_number=version,
                omit_empty_frames=bool(present),
                content_label="SEGMENTATION",
                series_description="Segmentation by frepa",
            )
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise UnreadableScan(
            str(path),
            f"no DICOM segmentation can be made of it ({str(error).splitlines()[0]}); --format nifti or png can",
        ) from None
    write_atomically(path, lambda temporary: made.save_as(temporary), sync=False)
    return path
