"""`frepa predict`: a trained head put on new scans."""

from __future__ import annotations

from typing import Literal

from frepa.user_paths import as_list
from frepa.verbs._result import RunResult


def predict(
    run: str,
    source: list[str],
    *,
    out: str,
    encoder: str | None = None,
    fold: int | None = None,
    head_seed: int | None = None,
    format: Literal["auto", "nifti", "png", "dicom-seg"] = "auto",
    probabilities: bool = False,
    overlays: bool = False,
    num_workers: int = 2,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    anonymous_names: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Put the trained head of a run on new scans: masks, classes or boxes, as the run's task is.

    Of a run with folds or seeds all heads are applied and averaged. Masks lie on the grid of their files, in the axes,
    directions and voxel sizes of these, and hold the values that the training masks had. The folder holds
    predictions.csv (a line per scan), masks/, or boxes/ (JSON) and boxes.csv (pixels of the file, and millimetres where
    it says how large they are), skipped.csv with the scans that could not be read, results.json and config.yaml. A
    folder of scans may be larger than memory.

    Args:
        run: folder of a finished run of frepa segment, classify or detect, or a head file.
        source: what to put it on: folders, globs, files, stores, manifests, dataset-id:folder. A DICOM series is its
            folder.
        out: folder to write; an existing one is never touched without --overwrite or --resume.
        encoder: where the encoder of the run is now; by default where it was during training.
        fold: the heads of this fold alone, of a run with folds.
        head_seed: the heads of this seed alone, of a run with several seeds.
        format: of masks; "auto" is PNG for images and NIfTI for volumes. "dicom-seg" is a DICOM segmentation that
            refers to its images and names the patient as they do; it needs frepa[dicom-seg].
        probabilities: also write maps of the class probabilities: NIfTI with the class as fourth axis, or TIFF with a
            page per class.
        overlays: also write a picture of each scan with what was found.
        num_workers: threads that read scans ahead; they never change the result.
        precision: fp32, bf16, or auto: bf16 on a GPU that has it, else fp32.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere, and name the outputs after
            them; config.yaml then holds no source.
        resume: continue the folder in --out that was stopped or killed; scans that are finished are not done again, and
            new ones in the source are done too.
        overwrite: replace what an earlier predict wrote in --out, and nothing else.
        quiet: no progress bar.
    """
    from frepa.downstream.predicting import PredictOptions, predict_all

    options = PredictOptions(
        run=run,
        source=as_list(source),
        out=out,
        encoder=encoder,
        fold=fold,
        head_seed=head_seed,
        format=format,
        probabilities=probabilities,
        overlays=overlays,
        precision=precision,
        num_workers=num_workers,
        anonymous_names=anonymous_names,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
    )
    return RunResult(predict_all(options))
