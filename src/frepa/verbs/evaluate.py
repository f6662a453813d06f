"""`frepa evaluate`: a trained run scored on another labelled set."""

from __future__ import annotations

from typing import Literal

from frepa.user_paths import as_list
from frepa.verbs._result import RunResult


def evaluate(
    run: str,
    source: list[str],
    *,
    out: str,
    encoder: str | None = None,
    fold: int | None = None,
    head_seed: int | None = None,
    part: Literal["test", "val", "train", "all"] = "test",
    divide_by: Literal["patients", "slices", "blocks"] = "patients",
    mask_threshold: float | None = None,
    cldice: bool = False,
    seed: int = 0,
    num_workers: int = 2,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    anonymous_names: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Score the trained head of a run on another labelled set, by the metrics of its task; nothing is trained.

    Of a run with folds or seeds all heads are applied and averaged, as frepa predict does, and the masks, probabilities
    and boxes are those that it gives. The folder holds results.json, cases.csv (a line per case), report.html,
    skipped.csv with the images that could not be read, config.yaml, and predictions/ or findings.csv. Baselines that
    need no encoder stand beside the scores, as the run's own training part has them. Of MedMNIST's sets the file that
    their evaluator reads is written too, and of boxes in volumes luna16.csv, which LUNA16's script reads.

    Args:
        run: folder of a finished run of frepa segment, classify or detect, or a head file.
        source: the labelled set: a folder, a store, a manifest, dataset-id:folder; several of masks are reported apart.
        out: folder to write; an existing one is never touched without --overwrite or --resume.
        encoder: where the encoder of the run is now; by default where it was during training.
        fold: the heads of this fold alone, of a run with folds.
        head_seed: the heads of this seed alone, of a run with several seeds.
        part: what is looked at of a set that is divided; what is in no part counts as test.
        divide_by: patients; or slices or blocks, for a set of one stack (see frepa segment).
        mask_threshold: mask values above it are foreground; by default the values in the masks decide.
        cldice: also score the centrelines (clDice), for vessels.
        seed: of the resamples that tell how sure a score of classes or boxes is.
        num_workers: threads that read images ahead; they never change the result.
        precision: fp32, bf16, or auto: bf16 on a GPU that has it, else fp32.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere; config.yaml then holds no
            source, and luna16.csv, which calls series by their names, is not written.
        resume: continue the folder in --out that was stopped or killed; cases that are finished are not done again.
        overwrite: replace what an earlier evaluate wrote in --out, and nothing else.
        quiet: no progress bar.
    """
    from frepa.downstream.evaluating import evaluate_run
    from frepa.downstream.evaluation import EvaluateOptions

    options = EvaluateOptions(
        run=run,
        source=as_list(source),
        out=out,
        encoder=encoder,
        fold=fold,
        head_seed=head_seed,
        part=part,
        divide_by=divide_by,
        mask_threshold=mask_threshold,
        cldice=cldice,
        seed=seed,
        precision=precision,
        num_workers=num_workers,
        anonymous_names=anonymous_names,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
    )
    return RunResult(evaluate_run(options))
