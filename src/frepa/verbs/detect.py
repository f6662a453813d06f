"""`frepa detect`: a detection head on a frozen encoder, trained and tested."""

from __future__ import annotations

from typing import Literal

from frepa.options import PerAxis
from frepa.verbs._result import RunResult


def detect(
    source: str,
    *,
    encoder: str,
    out: str,
    split: Literal["official", "random"] = "official",
    divide_by: Literal["patients", "slices", "blocks"] = "patients",
    folds: int | None = None,
    mask_threshold: float | None = None,
    criterion: Literal["centre", "sphere", "iou"] | None = None,
    image_size: int | None = None,
    crop_size: int | list[int] | PerAxis | None = None,
    window: str | None = None,
    batch_size: int = 8,
    epochs: float = 100,
    max_steps: int | None = None,
    lr: float | None = None,
    schedule: Literal["constant", "step", "cosine"] = "cosine",
    warmup_steps: int = 0,
    train: str = "head",
    encoder_lr: float | None = None,
    layer_decay: float | None = None,
    foreground: float = 0.5,
    augment: bool = True,
    feature_cache: str | None = None,
    val_every: int | None = None,
    overlap: float = 0.5,
    nms_iou: float | None = None,
    max_boxes: int = 100,
    seed: int = 0,
    seeds: int = 1,
    num_workers: int = 2,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    bundle: bool = False,
    anonymous_names: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Train a detection head on a frozen encoder and test it, in 2D or 3D as the encoder is.

    Of a slice transfer ("slices:ENCODER2D") the 2D encoder is frozen, and its blocks train with the head.
    Writes a run folder: the head (head.safetensors and head.json, with a reference to its encoder), results.json (FROC
    and CPM, sensitivity and precision, average precision, detection ratio and IoU), cases.csv (a line per test image),
    findings.csv (a line per box found, in the file's own axes), overlays, skipped.csv, metrics.jsonl, config.yaml and
    report.html. The encoder's guide channel is computed from each clean image and named in all results.

    Args:
        source: images with boxes: a Pascal VOC folder, a COCO folder, a table (CSV or parquet with the columns path,
            x_min, y_min, x_max, y_max, or coordX, coordY, coordZ and diameter_mm as LUNA16 has them, and label, split,
            group, fold if wanted), dataset-id:folder of the catalogue, or images with masks as frepa segment takes
            them, whose connected parts are the findings.
        encoder: a run folder, an encoder file, random:NAME, timm:NAME[@checkpoint], or slices:ENCODER2D, which carries
            any of these 2D encoders to volumes.
        out: folder of the run; an existing run is never touched without --overwrite.
        split: "official" keeps the source's own split and completes it; "random" is 7:1:2 by patient.
        divide_by: what is never parted where images are divided: patients; or, for a set of one patient or one stack,
            "blocks" of neighbouring slices, ten of each patient or stack (of volumes too), or single "slices". The
            report then says that all parts come from the same patients.
        folds: cross-validation with so many folds instead of one split, the source's own where it has so many; 5 in
            the paper.
        mask_threshold: mask values above it are findings, where boxes come from masks; by default the values in the
            masks decide the classes.
        criterion: what makes a box a hit. centre: its centre lies in the true box. sphere: its centre lies in the
            sphere inscribed in the true box, as in LUNA16. iou: an overlap of 0.5 or more. By default sphere where
            findings are given by centre and diameter, else centre.
        image_size: longer side, in pixels, that images are resized to before the encoder; by default they keep their
            own resolution. Scores are always taken at the image's own resolution.
        crop_size: side, in pixels, of the training crops and of the windows at prediction, or one per axis (slices,
            rows, columns: 8,48,48); by default 512 in 2D and 96 in 3D, and never more than the largest image. It is
            rounded up to whole positions of the encoder's map.
        window: CT window for images in HU: lung, abdomen, brain or bone.
        batch_size: crops per optimizer step, and windows per forward pass at prediction.
        epochs: passes over the training images; one pass is as many crops as cover them once.
        max_steps: optimizer steps instead of epochs.
        lr: highest learning rate of the head, by Adam; Muon moves its convolutions at three times that; by
            default 0.002 in 2D and 0.0005 in 3D.
        schedule: course of the learning rate after the warm-up: constant, step (x0.1 at 60 % and 85 %) or cosine.
        warmup_steps: steps of linear warm-up.
        train: what learns: "head" alone, on a frozen encoder, which compares encoders; "blocks=N", the last N blocks of
            the encoder too (stages, of a pyramid), or "all" of it, for the best score. What is tuned is kept with the
            head. The encoder stays in evaluation mode: batch norms keep their statistics, and nothing is dropped.
        encoder_lr: highest learning rate of the encoder's last block, where some of it learns; by default a tenth of
            --lr.
        layer_decay: every block has that share of the rate of the block after it; by default 0.75.
        foreground: share of the crops that hold a finding, its class drawn evenly; it lies anywhere in its crop.
        augment: random flips and quarter turns of the crops. Turn it off where classes tell left from right.
        feature_cache: folder in which what the 2D encoder of a slice transfer makes of each volume is kept between
            epochs and runs; for crops that are whole volumes, and with --no-augment.
        val_every: steps between validations; by default 20 validations in all. The head with the best average
            precision (at an IoU of 0.5, in 3D of 0.1) on the validation images is kept.
        overlap: share of a window that its neighbour covers too, at prediction.
        nms_iou: of two boxes of one class that overlap by more than this IoU only the better one stays; by default 0.5
            in 2D and 0.2 in 3D.
        max_boxes: the most boxes kept per image.
        seed: decides every random draw of the run, and the parts of the split that are not official.
        seeds: heads that are trained on each division, with --seed and the numbers after it; scores are then given over
            them, and every case is listed once for each.
        num_workers: threads that read and scale images ahead; they never change the result.
        precision: fp32, bf16, or auto: bf16 on a GPU that has it, else fp32.
        bundle: also write the encoder into the run, so that the folder is whole wherever it is moved or mailed.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere; config.yaml then holds no
            source. Scores are the same.
        resume: continue the run in --out that was stopped or killed; starts it when there is none yet. Heads that are
            finished are not trained again.
        overwrite: replace the run in --out: what an earlier run wrote there is removed, and nothing else.
        quiet: no progress bars.
    """
    from frepa.downstream.detection.task import Detection
    from frepa.downstream.detection.training import DetectionOptions
    from frepa.downstream.options import DataOptions, FitOptions, RunOptions
    from frepa.downstream.run import run_task

    options = DetectionOptions(
        encoder=encoder,
        data=DataOptions(
            source=source, split=split, divide_by=divide_by, folds=folds, image_size=image_size, window=window
        ),
        fit=FitOptions(
            batch_size=batch_size,
            epochs=epochs,
            max_steps=max_steps,
            lr=lr,
            schedule=schedule,
            warmup_steps=warmup_steps,
            train=train,
            encoder_lr=encoder_lr,
            layer_decay=layer_decay,
            augment=augment,
            val_every=val_every,
        ),
        run=RunOptions(
            out=out,
            seed=seed,
            seeds=seeds,
            num_workers=num_workers,
            precision=precision,
            feature_cache=feature_cache,
            bundle=bundle,
            anonymous_names=anonymous_names,
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
        ),
        mask_threshold=mask_threshold,
        crop_size=crop_size,
        foreground=foreground,
        overlap=overlap,
        criterion=criterion,
        nms_iou=nms_iou,
        max_boxes=max_boxes,
    )
    return RunResult(run_task(Detection(options)))
