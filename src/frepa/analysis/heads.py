"""The head of an encoder that is looked at: of the run that was named, or a linear probe fitted on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np

from frepa.analysis.contract import Study, Subject
from frepa.downstream.classification.data import ClassificationData, check_classes
from frepa.downstream.classification.features import FixedFeatures, common_side
from frepa.downstream.classification.trained import TrainedClassifier
from frepa.downstream.classification.training import build_classifier, start_closed_form
from frepa.downstream.monitoring import classification_probe, segmentation_probe
from frepa.downstream.segmentation.data import SegmentationData
from frepa.downstream.segmentation.probe import fit_probe
from frepa.downstream.segmentation.trained import TrainedSegmenter
from frepa.downstream.segmentation.training import build_segmenter, make_cache
from frepa.errors import InputError

_CROP = {2: 256, 3: 96}
_BATCH = 64
_VERBS = {"segmentation": "segment", "classification": "classify", "detection": "detect"}


def segmenter_of(subject: Subject, study: Study, data: SegmentationData) -> TrainedSegmenter:
    """The run's segmenters, or a ridge from the last map to the pixels (see `frepa.downstream.segmentation.probe`).

    Raises:
        InputError: the run is of another task, or its classes are not those of the set.
    """
    if subject.head is not None:
        _check_task(subject, "segmentation")
        assert isinstance(subject.head, TrainedSegmenter)
        classes = subject.head.models[0].head.classes
        if classes != data.classes:
            raise InputError(
                f"{subject.name}: the head knows {classes} classes, and the masks of {study.source} have "
                f"{data.classes}. Name a run that was trained on such masks."
            )
        return subject.head
    crop = study.crop_size or _CROP[study.dims]
    options = segmentation_probe(study.image_size, study.window, crop=crop, overlap=0.5)
    segmenter = build_segmenter(subject.encoder, data, options, study.seed, study.device)
    train, val = data.part("train"), data.part("val")
    cache = make_cache(segmenter, [*train, *val], study.num_workers)
    fitted, held = range(len(train)), range(len(train), len(train) + len(val))
    fit = fit_probe(segmenter, cache, fitted, held, quiet=study.quiet)
    cache.close()
    study.notes.extend(f"{subject.name}: {note}" for note in fit.notes)
    return TrainedSegmenter([segmenter], [], subject.reference)


def classifier_of(subject: Subject, study: Study, data: ClassificationData) -> TrainedClassifier:
    """The run's classifiers, or logistic regression on the mean embedding.

    Raises:
        InputError: the run is of another task, or its classes are not those of the set.
    """
    if subject.head is not None:
        _check_task(subject, "classification")
        assert isinstance(subject.head, TrainedClassifier)
        classes = subject.head.models[0].classes
        if tuple(classes) != tuple(data.classes):
            raise InputError(
                f"{subject.name}: the head knows the classes {', '.join(classes)}, and {study.source} has "
                f"{', '.join(data.classes)}. Name a run that was trained on them."
            )
        return subject.head
    check_classes(data)
    options = classification_probe(study.image_size, study.window)
    side = study.image_size or common_side(data.source, data.records, slices=subject.encoder.stacks)
    classifier = build_classifier(subject.encoder, data, options, side, study.seed, study.device)
    rows = np.concatenate([data.rows("train"), data.rows("val")])
    features = FixedFeatures(classifier, data.source, data.records[rows], workers=study.num_workers, quiet=study.quiet)
    kept = data.without(features.unreadable)
    _, notes = start_closed_form(classifier, features, kept, _BATCH)
    study.notes.extend(f"{subject.name}: {note}" for note in notes)
    return TrainedClassifier([classifier], [], subject.reference)


def known_cases(data: SegmentationData) -> list[tuple]:
    """What decides what is read of a labelled set: images, masks, parts; see `frepa.analysis.parts.Parts.know`."""
    return [
        (case.source, case.record, case.mask, case.fov, case.target, case.rule, case.split)
        for item in data.sets
        for case in item.cases
    ]


def words(subject: Subject, of: str) -> str:
    """Which head it is, in words; ``of`` is what a probe is."""
    return of if subject.head is None else f"the head of the run ({subject.head.task})"


def _check_task(subject: Subject, wanted: str) -> None:
    head: Any = subject.head
    if head.task != wanted:
        raise InputError(
            f"{subject.name}: a run of frepa {_VERBS[head.task]}, and here one of frepa {_VERBS[wanted]} is needed. "
            "Name such a run, or the encoder alone, to which a linear probe is fitted."
        )
