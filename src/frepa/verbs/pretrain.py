"""`frepa pretrain`: train an encoder on unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def pretrain(
    source: str,
    *,
    out: str,
    method: str = "frepa",
    encoder: str | None = None,
    dims: Literal[2, 3] = 2,
    image_size: int | None = None,
    fit: Literal["resize", "crop"] | None = None,
    spacing: float | list[float] | str | None = None,
    foreground: float = 0.0,
    window: Literal["lung", "abdomen", "brain", "bone", "any"] = "any",
    guide: str = "frangi",
    epochs: float = 100,
    max_steps: int | None = None,
    modality_weights: str | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    recompute: bool = False,
    lr: float = 1e-4,
    schedule: Literal["constant", "step", "cosine"] = "constant",
    warmup_steps: int = 0,
    clip: float = 1.0,
    ema_decay: float = 0.0,
    augment: bool = True,
    spectrum_patch: int | Literal["auto"] = "auto",
    spectrum_cutoff: float = 0.2,
    noise_sigma: float = 0.002,
    high_mask: bool = True,
    low_noise: bool = True,
    image_patch: int | Literal["auto"] = "auto",
    mask_ratio: float = 0.7,
    mask_noise: Literal["gaussian", "permute", "zero"] = "gaussian",
    frequency_probability: float = 0.5,
    rmse_weight: float = 1.0,
    gradient_weight: float = 1.0,
    hfl_weight: float = 1.0,
    consistency_weight: float = 0.5,
    focal_frequency_weight: float = 0.0,
    adversarial_weight: float = 0.0,
    adversarial_start_epoch: int = 5,
    val_images: int = 8,
    max_unreadable: float = 0.2,
    checkpoint_every: int = 500,
    seed: int = 0,
    num_workers: int = 2,
    devices: str = "auto",
    num_nodes: int = 1,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    resume: bool = False,
    accept_changed_source: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Pretrain an encoder on unlabelled images or volumes, so that fine detail survives.

    Writes a run folder: encoder.safetensors and encoder.json, config.yaml, metrics.jsonl, speed.jsonl, skipped.csv, a
    picture of reconstructions per epoch (100 in a run at most; of volumes crops as NIfTI too), checkpoints, and
    report.html. A run that was killed continues with the same command and --resume, and ends with the same weights as
    one that was not. Ctrl-C or SIGTERM saves the state after the step under way and ends with exit code 3.

    Args:
        source: a folder, a glob, a file, a manifest (CSV or parquet with a column "path"), or a prepared store.
        out: folder of the run; an existing run is never touched without --resume or --overwrite.
        method: what the encoder is trained by.
        encoder: architecture by name, with options after commas: "convnext_atto,output_stride=8". In 2D
            vit_base (the default), vit_tiny, swin_base, convnext_base, ..., timm:NAME; in 3D vit3d_base (the default),
            vit3d_tiny, swinunetr_base, mednext_large, resenc_large, ...
        dims: 2 for images, 3 for volumes.
        image_size: side in pixels (voxels) of what the encoder sees; by default 512 in 2D and 128 in 3D.
        fit: "resize" keeps the aspect and pads with zeros; "crop" takes a random crop at native resolution, padded with
            zeros where the scan is smaller. By default "resize" in 2D and "crop" in 3D.
        spacing: voxel size in mm that scans are brought to, one number or one per axis (slices, rows, columns:
            "3,1,1"); by default they keep their own. Only the crop is read and resampled where the source is a store.
        foreground: share of the crops centred on foreground: in CT above -500 HU, elsewhere above a tenth of the way
            from the scan's darkest values to its brightest (0.5th and 99.5th percentile).
        window: CT window for images in HU; "any" draws one of the four per image. Others are scaled by percentiles.
        guide: what the guide channel holds: frangi or hessian ridges, dark and bright alike, one polarity of them
            (frangi_dark, frangi_bright, hessian_dark, hessian_bright), or none; scales in pixels may follow
            ("frangi_dark:1-2-3"). The encoder is fed the same downstream.
        epochs: passes over the source.
        max_steps: optimizer steps instead of epochs.
        modality_weights: how often each modality is drawn, such as "CT=2,MRI=1": shares in any scale, exact within
            every 1000 samples however many scans there are of each; a modality that is not named is left out, and
            "unknown" stands for scans that name none. By default every scan is drawn once per epoch.
        batch_size: images per optimizer step, over all devices together; by default 16 in 2D and 2 in 3D.
        accumulate: parts a device's share of a batch is worked through in, to save memory.
        recompute: compute the encoder's activations again in the backward pass instead of keeping them (activation
            checkpointing): less memory, more time, the same result. For large U-shaped 3D encoders.
        lr: highest learning rate.
        schedule: course of the learning rate after the warm-up: constant, step (x0.1 at 60 % and 85 %) or cosine.
        warmup_steps: steps of linear warm-up.
        clip: largest gradient norm; 0 for no clipping.
        ema_decay: decay of an average of the weights, which is then what is saved; 0 for none.
        augment: random flips, rotation, affine maps and histogram shifts.
        spectrum_patch: side, in bins, of the patches masked in the spectrum; "auto" is the paper's 16 at 512 pixels and
            in proportion elsewhere.
        spectrum_cutoff: cut-off distance of masking and perturbation, as a share of the shorter side.
        noise_sigma: standard deviation of the low-frequency perturbation, as a share of the spectrum's maximum.
        high_mask: mask the spectrum in the frequency strategy.
        low_noise: perturb the low frequencies in the frequency strategy.
        image_patch: side, in pixels, of the patches masked in the image. "auto" is the paper's 32 at 512 pixels and 16
            at 128 voxels: in proportion elsewhere with --fit resize, down to a quarter of the side with --fit crop.
        mask_ratio: share of the image patches masked in the image strategy.
        mask_noise: what a masked image patch becomes: gaussian (its mean and variance), permute (its own pixels
            shuffled) or zero.
        frequency_probability: how often a view is corrupted in the spectrum rather than in the image.
        rmse_weight: weight of the RMSE.
        gradient_weight: weight of the gradient loss.
        hfl_weight: weight of the hierarchical frequency-to-spatial loss.
        consistency_weight: weight of the consistency between the two views' embeddings; 0 trains on one view.
        focal_frequency_weight: weight of the focal frequency loss, for comparison.
        adversarial_weight: weight of an optional patch discriminator.
        adversarial_start_epoch: epochs before the discriminator takes part.
        val_images: images held out for the pictures and the validation loss; a source with fewer than ten times as
            many lends them from training.
        max_unreadable: share of the last 200 samples that may be unreadable; above it the source is taken for lost, and
            the run saves its state and ends. 1 for never.
        checkpoint_every: steps between checkpoints; the two newest are kept.
        seed: decides every random draw of the run.
        num_workers: processes per device that read and scale images; they never change the result.
        devices: "auto", or how many (or which, "0,3") GPUs or CPU processes to use.
        num_nodes: machines taking part, as the scheduler started them.
        precision: fp32, bf16, fp16, or auto: bf16 on a GPU that has it, else fp32.
        resume: continue the run in --out; starts it when there is none yet.
        accept_changed_source: with --resume, go on although files of the source were added, removed or altered.
        overwrite: replace the run in --out: what an earlier run wrote there is removed, and nothing else.
        quiet: no progress bar.
    """
    options = dict(locals())
    from frepa.pretraining.run import run_pretraining

    return run_pretraining(options)
