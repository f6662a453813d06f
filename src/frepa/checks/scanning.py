"""Measuring every record of a source in several processes; a record that ends its process is found out and named."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

from frepa.checks.measures import Measured, measure
from frepa.images.scan import Trouble, UnreadableScan
from frepa.images.source import Source


@dataclass(frozen=True)
class Failed:
    """Why there are no measurements of a record, in words and as a kind."""

    reason: str
    kind: Trouble | Literal["crash"] = "unreadable"


#: What comes back for a record.
Result = Measured | Failed
CRASHED = Failed("reading it ended the process: out of memory, or a fault in a decoder", "crash")
_CHUNK = {2: 64, 3: 4}

_source: Source | None = None


def measure_all(
    source: Source, *, num_workers: int, progress: Callable[[int], object] = lambda count: None
) -> dict[int, Result]:
    """Every record's result by its number.

    Args:
        source: opened with axes as stored.
        num_workers: processes; 0 or 1 measures in this one, where a crash is a crash.
        progress: called with the number of records done since the last call.
    """
    results: dict[int, Result] = {}
    if num_workers < 2:
        for index in range(len(source)):
            results[index] = _measure(source, index)
            progress(1)
        return results
    size = _CHUNK[source.dims]
    chunks: list[Sequence[int]] = [
        range(start, min(start + size, len(source))) for start in range(0, len(source), size)
    ]
    lost = _in_processes(source, chunks, num_workers, results, progress)
    for chunk in lost:
        # One by one, each in a process of its own, so that the one to blame is known
        for index in chunk:
            if _in_processes(source, [[index]], 1, results, progress):
                results[index] = CRASHED
                progress(1)
    return results


def _in_processes(
    source: Source,
    chunks: Sequence[Sequence[int]],
    workers: int,
    results: dict[int, Result],
    progress: Callable[[int], object],
) -> list[Sequence[int]]:
    """Fill ``results``; returns the chunks that were under way or waiting when a process ended."""
    queue = iter(chunks)
    pending: dict[Future[list[Result]], Sequence[int]] = {}
    broken: list[Sequence[int]] = []
    context = multiprocessing.get_context()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(source,)) as pool:
        try:
            for chunk in _some(queue, 2 * workers):
                pending[pool.submit(_work, chunk)] = chunk
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    chunk = pending.pop(future)
                    try:
                        results.update(zip(chunk, future.result()))
                    except BrokenProcessPool:
                        broken.append(chunk)
                        continue
                    progress(len(chunk))
                    for another in _some(queue, 1) if not broken else ():
                        pending[pool.submit(_work, another)] = another
        except BrokenProcessPool:
            broken.extend(pending.values())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rest = list(queue)
    if broken and rest:
        # The pool is gone; the chunks it never began are measured by a new one
        broken += _in_processes(source, rest, workers, results, progress)
    return broken


def _some(queue: Iterator[Sequence[int]], count: int) -> Iterator[Sequence[int]]:
    for _ in range(count):
        chunk = next(queue, None)
        if chunk is None:
            return
        yield chunk


def _start(source: Source) -> None:
    global _source
    _source = source
    import torch

    torch.set_num_threads(1)


def _work(chunk: Sequence[int]) -> list[Result]:
    assert _source is not None
    return [_measure(_source, index) for index in chunk]


def _measure(source: Source, index: int) -> Result:
    try:
        return measure(source.read(index))
    except UnreadableScan as error:
        return Failed(error.reason, error.kind)
    except MemoryError:
        return Failed("too large for this machine's memory", "too large")
