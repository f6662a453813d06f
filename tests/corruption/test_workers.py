"""Pieces cover everything once, on threads of their own, with torch's settings as they were."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch

from frepa.corruption.workers import for_each

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "pixels"), [(1, 1 << 20), (7, 1 << 17), (9, 1 << 19), (3000, 28 * 28), (0, 5)])
def test_everything_is_worked_on_once(count: int, pixels: int) -> None:
    seen = torch.zeros(count, dtype=torch.long)

    def work(piece: slice) -> None:
        seen[piece] += 1

    for_each(count, pixels, CPU, work)
    assert (seen == 1).all()


def test_an_accelerator_gets_everything_at_once() -> None:
    pieces: list[slice] = []
    for_each(64, 1 << 20, torch.device("cuda"), pieces.append)
    assert pieces == [slice(0, 64)]


def test_pieces_run_on_other_threads_with_one_torch_thread_each_and_nested_calls_stay() -> None:
    before = torch.get_num_threads()
    found: list[tuple[str, int, set[str]]] = []

    def work(piece: slice) -> None:
        inner: set[str] = set()
        for_each(4, 1 << 20, CPU, lambda _: inner.add(threading.current_thread().name))
        found.append((threading.current_thread().name, torch.get_num_threads(), inner))

    for_each(4, 1 << 20, CPU, work)
    assert len(found) == 4
    for name, threads, inner in found:
        assert name != threading.current_thread().name
        assert threads == 1
        assert inner == {name}
    assert torch.get_num_threads() == before
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]


def test_the_number_of_threads_is_followed() -> None:
    before = torch.get_num_threads()
    names: dict[int, set[str]] = {1: set(), 2: set()}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for_each(8, 1 << 20, CPU, lambda _, seen=names[threads]: seen.add(threading.current_thread().name))
    finally:
        torch.set_num_threads(before)
    assert names[1] == {threading.current_thread().name}
    assert threading.current_thread().name not in names[2]


def test_an_error_reaches_the_caller_and_the_next_call_works() -> None:
    def fail(piece: slice) -> None:
        raise ValueError(piece.start)

    with pytest.raises(ValueError):
        for_each(4, 1 << 20, CPU, fail)
    done: list[int] = []
    for_each(4, 1 << 20, CPU, lambda piece: done.append(piece.start))
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 4])
def test_work_runs_without_gradients_and_outside_autocast(count: int) -> None:
    modes: list[tuple[bool, bool]] = []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        for_each(
            count, 1 << 20, CPU, lambda _: modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        )
    assert modes == [(False, False)] * count


def _in_child(queue: multiprocessing.Queue) -> None:
    done: list[int] = []
    for_each(4, 1 << 20, CPU, lambda piece: done.append(piece.start))
    queue.put(sorted(done))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_makes_threads_of_its_own() -> None:
    for_each(4, 1 << 20, CPU, lambda piece: None)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=30) == [0, 1, 2, 3]
    finally:
        child.kill()
        child.join()
