"""`frepa ablate`: encoders that differ by one option each, pretrained and compared."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import RunResult


def ablate(
    study: str,
    *,
    out: str,
    jobs: int = 1,
    threads: int | None = None,
    backend: Literal["loky", "dask", "ray"] = "loky",
    cluster: str | None = None,
    num_workers: int = 0,
    retry: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    anonymous_names: bool = False,
) -> RunResult:
    """Pretrain encoders that differ from one recipe by an option each, and compare them as frepa compare does.

    The study's key pretrain says from what images, with which options, and which rows: table9 (without each component
    of the method, as the paper's table), guide, consistency, masks, or rows of one's own. Every row is a pretraining
    run below rows, under a name made of its options, one after another; then follow the cells of the comparison. Given
    again with --resume nothing that is finished is done again, and a run that was killed goes on.

    Args:
        study: YAML file as frepa compare takes it, with the key pretrain besides (source, options, rows, seeds).
        out: folder of the study; an existing one is never touched without --resume or --overwrite.
        jobs: cells of the comparison computed at a time.
        threads: of each cell; by default the processors of this machine divided by --jobs.
        backend: joblib's engine for several jobs: loky is processes on this machine; dask and ray need these packages.
        cluster: address of a running Dask or Ray scheduler, whose workers see the same files.
        num_workers: processes of a pretraining, and threads of a cell, that read images ahead.
        retry: try cells again that were marked because an encoder did not fit.
        resume: go on with the study in --out, also where the YAML file has changed meanwhile.
        overwrite: replace the study in --out with all its rows and cells.
        quiet: no progress bars.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere, also in the runs of the
            study; study.yaml then holds no source.
    """
    from frepa.comparison.run import CompareOptions, read_study_file
    from frepa.verbs._ablating import run_ablation

    options = CompareOptions(
        out=out,
        jobs=jobs,
        threads=threads,
        backend=backend,
        cluster=cluster,
        num_workers=num_workers,
        retry=retry,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        anonymous_names=anonymous_names,
    )
    return RunResult(run_ablation(read_study_file(study), study, options))
