"""`frepa compare`: encoders on tasks, in one table, with what is more than chance."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import RunResult


def compare(
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
    """Compare encoders on tasks from one YAML file: heads on each frozen encoder, one table, paired tests, ranks.

    Every cell (encoder, task, head, seed) is a run of frepa segment, classify or detect below cells, under a name made
    of the content of encoder and data, the options and the version: given again with --resume, what is there is not
    computed again, a changed option only its cells, and a cell that was killed goes on. An encoder that does not fit a
    task is a marked cell with its reason. Writes table.csv and table.md (mean, standard deviation, 95 % interval,
    mean rank), cells.csv (every run), cases.csv (every test case), tests.csv (paired tests, corrected by Holm),
    overlays of one case by every encoder, results.json and report.html with the critical-difference diagram.

    Args:
        study: YAML file with encoders (name: run folder, encoder file, random:NAME or timm:NAME, or a list of them
            where one was pretrained several times), tasks (name: verb and source, options of the verb, protocol), and
            if wanted heads (linear, trained), seeds, baselines, options by verb, protocols, reference.
        out: folder of the study; an existing one is never touched without --resume or --overwrite.
        jobs: cells computed at a time.
        threads: of each cell; by default the processors of this machine divided by --jobs. It changes no score but in
            its last digits.
        backend: joblib's engine for several jobs: loky is processes on this machine; dask and ray need these packages.
        cluster: address of a running Dask or Ray scheduler, whose workers see the same files; by default one is started
            on this machine.
        num_workers: threads of each cell that read images ahead.
        retry: try cells again that were marked because an encoder did not fit.
        resume: go on with the study in --out, also where the YAML file has changed meanwhile.
        overwrite: replace the study in --out with all its cells.
        quiet: no progress bar.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere, also in the runs of the
            study; study.yaml then holds no source.
    """
    from frepa.comparison.run import CompareOptions, read_study_file, run_study
    from frepa.verbs._comparing import BASELINES, VERBS

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
    return RunResult(run_study(read_study_file(study), study, options, VERBS, BASELINES))
