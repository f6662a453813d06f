"""Work on a batch piece by piece, each piece on one thread.

torch's own way on the CPU is to share every operation between all threads, which then wait for each other some
thousand times per batch; where other programs keep the cores busy, each wait can take milliseconds. Here every thread
takes whole images, few enough to stay in its cache, and nothing waits until the batch is done. An accelerator gets all
images at once.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Pixels of a piece: 1 MiB of float32, so that the few tensors in use at a time stay in a core's cache.
_PIXELS = 1 << 18


def for_each(count: int, pixels: int, device: torch.device, work: Callable[[slice], None]) -> None:
    """Call ``work`` with slices that cover ``range(count)``, in any order and possibly at the same time.

    Args:
        count: number of things, of ``pixels`` float32 numbers each.
        device: on the CPU a slice holds as many things as fit in the cache, at least one, and the slices are shared
            between `torch.get_num_threads` threads; elsewhere there is one slice.
        work: writes its results into tensors made beforehand. It runs without gradients and outside autocast.
    """
    step = max(1, _PIXELS // max(pixels, 1)) if device.type == "cpu" else max(count, 1)
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    # One inside a worker, so that nested calls stay on their thread.
    threads = torch.get_num_threads() if device.type == "cpu" else 1

    # These settings belong to the thread that makes them.
    def settled(piece: slice) -> None:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            work(piece)

    if threads == 1 or len(slices) <= 1:
        for piece in slices:
            settled(piece)
    else:
        for _ in _pool(threads, os.getpid()).map(settled, slices):
            pass


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads on which an operation of torch is not shared further. ``process``: a fork does not inherit them."""
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # makes the setting this thread's own
        ready.wait()

    pool = ThreadPoolExecutor(threads, "frepa", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # the workers' setting is also what threads made later start with
    return pool
