"""`frepa segment`: a segmentation head on a frozen encoder, trained and tested."""

from __future__ import annotations

from typing import Literal

from frepa.options import PerAxis
from frepa.verbs._result import RunResult


def segment(
    source: list[str],
    *,
    encoder: str,
    out: str,
    head: Literal["conv", "linear", "unet"] = "conv",
    features: Literal["last", "pyramid", "pyramid+image"] | None = None,
    reach: int = 1,
    split: Literal["official", "random"] = "official",
    divide_by: Literal["patients", "slices", "blocks"] = "patients",
    folds: int | None = None,
    mask_threshold: float | None = None,
    image_size: int | None = None,
    crop_size: int | list[int] | PerAxis | None = None,
    window: str | None = None,
    batch_size: int | None = None,
    epochs: float = 30,
    max_steps: int | None = None,
    lr: float = 2e-3,
    schedule: Literal["constant", "step", "cosine"] = "cosine",
    warmup_steps: int = 30,
    train: str = "head",
    encoder_lr: float | None = None,
    layer_decay: float | None = None,
    loss: Literal["dice", "dice_ce"] = "dice",
    foreground: float = 1 / 3,
    augment: bool | None = None,
    feature_cache: str | None = None,
    val_every: int | None = None,
    overlap: float = 0.5,
    cldice: bool = False,
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
    """Train a segmentation head on a frozen encoder and test it, in 2D or 3D as the encoder is.

    Of a slice transfer ("slices:ENCODER2D") the 2D encoder is frozen, and its blocks train with the head.
    Writes a run folder: the head (head.safetensors and head.json, with a reference to its encoder), results.json,
    cases.csv (a line per test case), predictions, overlays of the best, median and worst case, metrics.jsonl,
    config.yaml and report.html. Sets given together are trained on together and reported apart. The encoder's guide
    channel is computed from each clean image and named in all results, because it helps a head by itself.

    Args:
        source: one or more sets of images with masks: a folder with images/ and masks/ or in the layout of DRIVE,
            CHASE_DB1, HRF, STARE or the Medical Decathlon, dataset-id:folder of the catalogue, or a manifest (CSV or
            parquet with the columns image and mask, and fov, split, group, fold if wanted).
        encoder: a run folder, an encoder file, random:NAME, timm:NAME[@checkpoint], or slices:ENCODER2D, which
            carries any of these 2D encoders to volumes.
        out: folder of the run; an existing run is never touched without --overwrite.
        head: "linear" is ridge regression in closed form from each position's features to its block of pixels:
            an instrument without seed, learning rate or steps. "conv" starts from it and trains convolutions on top, up
            from the map and, as a small U-Net, across planes that it lifts from the maps to the pixels.
            "unet" trains a U-Net instead, on maps of full resolution: with --encoder pixels:2d it is what a supervised
            network makes of the same cases.
        features: maps of the encoder that the head reads: "last", its dense map alone, for comparisons of encoders;
            "pyramid", every stage, or several depths of a plain ViT; "pyramid+image", the image and its guide too. By
            default pyramid+image, and last where the last map has full resolution and for a slice transfer.
        reach: positions per axis, 1 or 3, from which the linear part reads each block of pixels.
        split: "official" keeps a set's own split and completes it; "random" is 7:1:2 by patient for every set.
        divide_by: what is never parted where images are divided: patients; or, for a set of one patient or one stack,
            "blocks" of neighbouring slices, ten of each patient or stack (of volumes too), or single "slices". The
            report then says that all parts come from the same patients.
        folds: cross-validation with so many folds instead of one split: a set's own where it has so many, else by its
            patients.
        mask_threshold: mask values above it are foreground; by default the values in the masks decide the classes.
        image_size: longer side, in pixels, that images are resized to before the encoder; by default they keep their
            own resolution. Scores are always taken at the image's own resolution.
        crop_size: side, in pixels, of the training crops and of the windows at prediction, or one per axis (slices,
            rows, columns: 8,48,48); by default 256 in 2D and 96 in 3D, and no more than nine in ten images need.
        window: CT window for images in HU: lung, abdomen, brain or bone.
        batch_size: crops per optimizer step, and windows per forward pass at prediction; by default 2 crops, since few
            are better for as many in all, and 8 windows, 2 in 3D.
        epochs: passes over the training images; one pass is as many crops as cover them once.
        max_steps: optimizer steps instead of epochs.
        lr: highest learning rate of the head, by Adam; Muon moves its convolutions at three times that.
        schedule: course of the learning rate after the warm-up: constant, step (x0.1 at 60 % and 85 %) or cosine.
        warmup_steps: steps of linear warm-up.
        train: what learns: "head" alone, on a frozen encoder, which compares encoders; "blocks=N", the last N blocks of
            the encoder too (stages, of a pyramid), or "all" of it, for the best score. What is tuned is kept with the
            head. The encoder stays in evaluation mode: batch norms keep their statistics, and nothing is dropped.
        encoder_lr: highest learning rate of the encoder's last block, where some of it learns; by default a tenth of
            --lr.
        layer_decay: every block has that share of the rate of the block after it; by default 0.75.
        loss: dice, or dice_ce for Dice plus cross entropy.
        foreground: share of the crops centred on a labelled pixel, its class drawn evenly.
        augment: random flips and quarter turns of the crops; by default, unless the training masks show that things lie
            the same way in every image. Turn it off where classes tell left from right.
        feature_cache: folder in which what the 2D encoder of a slice transfer makes of each volume is kept between
            epochs and runs; for crops that are whole volumes, and with --no-augment.
        val_every: steps between validations; by default 20 validations in all. The head with the best validation DSC
            is kept.
        overlap: share of a window that its neighbour covers too, at prediction.
        cldice: also score the centrelines (clDice), for vessels.
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
    from frepa.downstream.options import DataOptions, FitOptions, RunOptions
    from frepa.downstream.run import run_task
    from frepa.downstream.segmentation.task import Segmentation
    from frepa.downstream.segmentation.training import SegmentationOptions

    options = SegmentationOptions(
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
        head=head,
        features=features,
        reach=reach,
        loss=loss,
        cldice=cldice,
    )
    return RunResult(run_task(Segmentation(options)))
