"""`frepa classify`: a classification head on a frozen encoder, trained and tested."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import RunResult


def classify(
    source: str,
    *,
    encoder: str,
    out: str,
    split: Literal["official", "random"] = "official",
    divide_by: Literal["patients", "slices", "blocks"] = "patients",
    folds: int | None = None,
    image_size: int | None = None,
    window: str | None = None,
    head: Literal["linear", "mlp", "resnet"] | None = None,
    hidden: int = 256,
    pooling: Literal["mean", "attention"] = "mean",
    batch_size: int | None = None,
    epochs: float = 100,
    max_steps: int | None = None,
    lr: float = 1e-3,
    schedule: Literal["constant", "step", "cosine"] = "cosine",
    warmup_steps: int = 0,
    train: str = "head",
    encoder_lr: float | None = None,
    layer_decay: float | None = None,
    augment: bool = False,
    feature_cache: str | None = None,
    val_every: int | None = None,
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
    """Train a classification head on a frozen encoder and test it, in 2D or 3D as the encoder is.

    The embedding of every image is computed once, so that training the head takes seconds; augmentation is off for that
    reason. Of a slice transfer ("slices:ENCODER2D") the 2D encoder is frozen, and its blocks train with the head.
    Writes a run folder: the head (head.safetensors and head.json, with a reference to its encoder), results.json (ACC
    and AUC), cases.csv (a line per test case), confusion.png, skipped.csv, metrics.jsonl, config.yaml and report.html.
    The encoder's guide channel is computed from each clean image and named in all results.

    Args:
        source: labelled images: a folder per class (also below train/, val/ and test/), a manifest (CSV or parquet with
            the columns path and label, and split, group if wanted; several labels are parted by |), dataset-id:folder
            of the catalogue, an npz file as MedMNIST has them, or a store.
        encoder: a run folder, an encoder file, random:NAME, timm:NAME[@checkpoint], or slices:ENCODER2D, which carries
            any of these 2D encoders to volumes.
        out: folder of the run; an existing run is never touched without --overwrite.
        split: "official" keeps the source's own split and completes it; "random" is 7:1:2 by patient.
        divide_by: what is never parted where images are divided: patients; or, for a set of one patient or one stack,
            "blocks" of neighbouring slices, ten of each patient or stack (of volumes too), or single "slices". The
            report then says that all parts come from the same patients.
        folds: cross-validation with so many folds instead of one split; 5 in the paper.
        image_size: side, in pixels, images are brought to, aspect kept, zeros around; by default the longest side
            found, up to 512 in 2D and 128 in 3D. Of a slice transfer the side of each slice.
        window: CT window for images in HU: lung, abdomen, brain or bone.
        head: "linear" is logistic regression on the mean embedding, solved to convergence: an instrument without seed,
            learning rate or steps, whose penalty the validation part chooses. "mlp" starts from it and trains a hidden
            layer on top. "resnet" trains a small network on the embedding's positions instead: with --encoder pixels:2d
            it is what a supervised network makes of the same images. By default linear, and mlp where something
            trains with it: the blocks of a slice transfer, attention, a head on augmented images, or the encoder
            (--train).
        hidden: width of the hidden layer of mlp.
        pooling: of the embedding's positions: mean, or attention with one learned query.
        batch_size: images per optimizer step; by default 64; 16 where the encoder learns too, 8 for a slice transfer.
        epochs: passes over the training images.
        max_steps: optimizer steps instead of epochs.
        lr: highest learning rate of the head.
        schedule: course of the learning rate after the warm-up: constant, step (x0.1 at 60 % and 85 %) or cosine.
        warmup_steps: steps of linear warm-up.
        train: what learns: "head" alone, on a frozen encoder, which compares encoders; "blocks=N", the last N blocks of
            the encoder too (stages, of a pyramid), or "all" of it, for the best score. What is tuned is kept with the
            head. The encoder stays in evaluation mode: batch norms keep their statistics, and nothing is dropped.
        encoder_lr: highest learning rate of the encoder's last block, where some of it learns; by default a tenth of
            --lr.
        layer_decay: every block has that share of the rate of the block after it; by default 0.75.
        augment: random flips along every axis; every image then passes the encoder in every epoch. Not where classes
            tell left from right.
        feature_cache: folder in which what the 2D encoder of a slice transfer makes of each volume is kept between
            epochs and runs.
        val_every: steps between validations; by default 20 validations in all. The head with the best validation AUC
            is kept.
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
    from frepa.downstream.classification.task import Classification
    from frepa.downstream.classification.training import ClassificationOptions
    from frepa.downstream.options import DataOptions, FitOptions, RunOptions
    from frepa.downstream.run import run_task

    options = ClassificationOptions(
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
        head=head,
        hidden=hidden,
        pooling=pooling,
    )
    return RunResult(run_task(Classification(options)))
