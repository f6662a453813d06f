"""The cells that are missing, computed one after another or side by side: on this machine, or on a cluster's."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from frepa.comparison.cells import (
    DONE,
    UNFIT,
    Baseline,
    Cell,
    Job,
    Record,
    compute,
    forget_shared,
    job_of,
    remove_if_empty,
    shares_of,
)
from frepa.errors import InputError, nearest
from frepa.files import announce
from frepa.processors import processors

#: Engines that joblib runs the cells by; what the name of one needs installed.
BACKENDS = {"loky": "joblib", "dask": "distributed", "ray": "ray"}
# What cells of one encoder and set have in common is kept in as much of the memory, all cells at a time together.
_SHARED_MEMORY = 0.1


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    verbs: Mapping[str, Callable[..., Any]],
    baselines: Mapping[str, Baseline],
    *,
    jobs: int = 1,
    threads: int = 1,
    backend: str = "loky",
    cluster: str | None = None,
    num_workers: int = 0,
    retry: bool = False,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Record]:
    """The record of every cell by its key; what is there already is not computed again.

    Args:
        cells: of a study; several may have one key, and are one.
        folder: ``cells`` of the study.
        verbs, baselines: what computes them.
        jobs: cells at a time; 1 computes them in this process.
        threads: of each.
        backend: joblib's, for more than one job.
        cluster: address of the scheduler of Dask or Ray; None starts one here.
        num_workers: threads of each cell that read ahead.
        retry: cells that did not fit are tried again. Those that failed are in any case.
        quiet: no progress bar.
        tell: called with a sentence for each cell that is marked.
    """
    folder.mkdir(exist_ok=True)
    records: dict[str, Record] = {}
    missing: dict[str, Cell] = {}
    for cell in cells:
        if cell.unfit:
            records[cell.key] = Record(UNFIT, cell.unfit)
            continue
        kept = Record.read(folder, cell.key)
        if kept is not None and kept.status == DONE and not (folder / cell.key / "results.json").is_file():
            kept = None  # somebody took the folder away
        if kept is None or kept.status not in (DONE, UNFIT) or (retry and kept.status == UNFIT):
            missing.setdefault(cell.key, cell)
        else:
            records[cell.key] = kept
    todo: list[Job] = []
    alike = Counter(map(shares_of, missing.values()))
    for cell in missing.values():
        place = folder / cell.key
        place.mkdir(exist_ok=True)
        announce(place)  # a folder with a mark of its own, which a worker cannot add to this run's list
        announce(folder / f"{cell.key}.log")
        job = job_of(cell, folder, verbs, baselines, threads=threads, num_workers=num_workers)
        group = shares_of(cell)
        todo.append(replace(job, shares=group if alike[group] > 1 else "", room=_SHARED_MEMORY / jobs))
    bar = tqdm(total=len(todo), unit="cell", desc="Cells", disable=quiet or not todo, dynamic_ncols=True)
    names = {key: f"{cell.row.name} on {cell.task.name}" for key, cell in missing.items()}

    def begun(job: Job) -> None:
        bar.set_postfix_str(names[job.key], refresh=True)

    with bar, contextlib.closing(_computed(todo, jobs, threads, backend, cluster, begun)) as computed:
        for key, record in computed:
            cell = missing[key]
            record.write(folder, cell)
            records[key] = record
            if record.status != DONE:
                tell(f"{names[key]}: {record.status}. {record.reason}")
            remove_if_empty(folder / key)
            bar.update()
    forget_shared()
    return records


def _computed(
    todo: Sequence[Job], jobs: int, threads: int, backend: str, cluster: str | None, begun: Callable[[Job], None]
) -> Generator[tuple[str, Record], None, None]:
    if not todo:
        return
    if jobs == 1 and cluster is None:
        for job in todo:
            begun(job)
            yield compute(job)
        return
    import joblib

    with _engine(backend, jobs, threads, cluster) as options:
        # Workers are told by the parent when to end; a cell that is cut off goes on the next time.
        # Ray's gives everything at the end; what a run that was cut off had finished is then found in its folder.
        given = "list" if backend == "ray" else "generator_unordered"
        yield from joblib.Parallel(n_jobs=jobs, return_as=given, batch_size=1, **options)(
            joblib.delayed(compute)(job) for job in todo
        )


@contextlib.contextmanager
def _engine(backend: str, jobs: int, threads: int, cluster: str | None) -> Iterator[dict[str, Any]]:
    """Whatever joblib needs to have been started."""
    import joblib

    if backend == "dask":
        from distributed import Client, LocalCluster

        # Processes, because what a cell tells is caught per process, and because PyTorch's threads are.
        own = None if cluster else LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        with own or contextlib.nullcontext(), Client(cluster or own), joblib.parallel_config(backend="dask"):
            yield {}
        return
    if backend == "ray":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home otherwise
        import ray
        from ray.util.joblib import register_ray

        started = {} if cluster else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(address=cluster, ignore_reinit_error=True, **started)
        register_ray()
        try:
            with joblib.parallel_config(backend="ray"):
                yield {}
        finally:
            ray.shutdown()
        return
    with joblib.parallel_config(backend=backend, inner_max_num_threads=threads):
        yield {}


def check_engine(jobs: int, threads: int | None, backend: str, cluster: str | None) -> None:
    """Raise InputError where cells cannot be run so."""
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: expected 1 or more.")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: expected 1 or more.")
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend} is not known. {nearest(backend, BACKENDS)}")
    if cluster is not None and backend == "loky":
        raise InputError(
            f"--cluster {cluster}: it is the address of a Dask or Ray scheduler; add --backend dask or ray."
        )
    import importlib.util

    if importlib.util.find_spec(BACKENDS[backend]) is None:
        raise InputError(
            f"--backend {backend} needs {BACKENDS[backend]}, which is not installed: pip install "
            f'"frepa[{backend}]". Or leave --backend out to use the processors of this machine.'
        )


def threads_for(jobs: int) -> int:
    """Threads of each cell where nobody says: the processors of this machine, divided."""
    return max(1, processors() // jobs)
