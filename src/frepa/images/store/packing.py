"""`frepa prepare`: a source into a store, by several processes, continued where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from frepa.errors import InputError, RunEnded
from frepa.files import full_disk, full_words, write_text
from frepa.images.anonymity import key_check, use_the_key
from frepa.images.hidden_names import Names
from frepa.images.source import Source
from frepa.images.store.index import write_index
from frepa.images.store.labels import Labels
from frepa.images.store.layout import StoreFolder, dump, read_facts
from frepa.images.store.records import pack_scan
from frepa.images.store.shards import RESERVE_BYTES, DiskFull, Shard, Stopped, write_shard
from frepa.locks import Lock
from frepa.names import shown, size_words
from frepa.run_folders import check_inputs
from frepa.stopping import Parent, end_with_parent
from frepa.user_paths import named_folder

# Raw bytes a shard aims at; fewer records where there are few, so that several processes have something to do
_SHARD_BYTES, _MANY_SHARDS = 2**28, 64
_LEAST_RECORDS, _MOST_RECORDS = {2: 16, 3: 1}, 4096
_PROBES = {2: 8, 3: 3}  # records packed beforehand to foretell the size of the store
_OUT_OF_MEMORY = (
    "{}. What is packed so far is kept: give the same command with fewer than {} --num-workers, and it continues "
    "where it stopped."
)
_RESERVED = f", of which {size_words(RESERVE_BYTES)} are kept free for the index and for others"
_OTHER_KEY = (
    " It was packed under another secret key than today's: its patients and records go by other names here. Add "
    "--overwrite to pack it under this one."
)
_PATIENCE = 20.0  # seconds to wait for another process to let go of the store
_INDEX_BYTES = 500  # of one record, generously


class WorkerLost(RunEnded):
    """Memory ran out, or a process was ended from outside."""


@dataclass
class _Shared:
    """What a worker process keeps between shards. ``done`` counts records, ``stop`` is set to end early."""

    source: Source
    folder: StoreFolder
    quantize: bool
    done: Any
    stop: Any
    labels: Labels | None


_shared: _Shared | None = None
_parent: Parent | None = None


def pack_source(
    source: Source,
    out: str | Path,
    *,
    labels: Labels | None = None,
    quantize: bool = False,
    keep_names: bool = False,
    names: Names | None = None,
    num_workers: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Pack every record of ``source`` into a store at ``out``; continue one that was begun with the same options.

    Args:
        source: what is packed.
        out: folder of the store.
        labels: what is known of the records, which the store keeps with them.
        quantize: as in `frepa.images.store.records.pack_scan`.
        keep_names: keep the records' names within the source.
        names: what stands for them in the list beside the store; as they are by default.
        num_workers: processes; they never change the bytes.
        overwrite: replace a store that is there.
        quiet: no progress bar.

    Returns:
        What ``store.json`` says.

    Raises:
        InputError: ``out`` is something else or another store, nothing can be used, or the disk is full.
        WorkerLost: the system ended a worker, usually for want of memory.
    """
    folder = StoreFolder(named_folder(out))
    plan = _plan(source, labels, quantize=quantize, keep_names=keep_names)
    if _is_complete(folder, plan, source, overwrite):
        facts = read_facts(folder)
        other = facts.get("key") not in (None, key_check())
        tell(f"The store {folder.root} is complete; nothing is left to do." + _OTHER_KEY * other)
        _clean(folder)
        return facts
    there, begun = folder.root.is_dir(), folder.plan.is_file()
    try:
        shards = _begin(folder, plan, source)
        with _alone(folder):
            folder.shards.mkdir(exist_ok=True)
            remaining = _remaining(folder, shards)
            _check_room(folder, source, shards, remaining)
            done = len(source) - sum(remaining.values())
            with progress_bar("prepare", len(source), done, quiet=quiet) as bar:
                unwritten = [shard for shard in shards if shard.number in remaining]
                _write_shards(source, labels, folder, unwritten, quantize, num_workers, bar)
            facts = write_index(folder, source, shards, plan, keep_names=keep_names, names=names, labels=labels)
    except _TooLarge:
        # Nothing is packed, and what is refused writes nothing
        if not begun and folder.remove() == [] and not there:
            folder.root.rmdir()
        raise
    except PermissionError as error:
        raise _unwritable(folder, error) from None
    except MemoryError:
        raise WorkerLost(_OUT_OF_MEMORY.format("Memory ran out", num_workers)) from None
    except BrokenProcessPool:
        cause = "The system ended a worker process, most likely for want of memory"
        raise WorkerLost(_OUT_OF_MEMORY.format(cause, num_workers)) from None
    except (OSError, DiskFull) as error:
        if not folder.root.is_dir():
            raise RunEnded(
                f"--out {folder.root}: the folder was removed or renamed while it was written. What was packed in it "
                "is gone; give the command again."
            ) from None
        if isinstance(error, DiskFull):
            free = shutil.disk_usage(folder.root).free
            what, remedy = f"The disk of {folder.root} is full ({size_words(free)} left{_RESERVED})", "Make room"
        elif full_disk(error):
            what, remedy = full_words(error, folder.root)
        else:
            raise
        raise RunEnded(
            f"{what}. What is packed so far is kept. {remedy} and give the same command again: it continues where it "
            "stopped."
        ) from None
    _clean(folder)
    if facts["skipped"]:
        whole = facts["skipped"] + facts["records"]
        tell(f"{facts['skipped']} of {whole} scans were left out; {folder.skipped_names} lists them.")
    return facts


def _plan(source: Source, labels: Labels | None = None, *, quantize: bool, keep_names: bool) -> dict[str, Any]:
    """What decides the bytes of a store: an attempt with another plan is not continued."""
    plan = {"source": source.fingerprint, "dims": source.dims, "quantize": quantize, "keep_names": keep_names}
    return plan if labels is None else plan | {"annotations": labels.fingerprint}


def _clean(folder: StoreFolder) -> None:
    folder.remove(below=folder.unfinished)


def tell(sentence: str) -> None:
    """One line for the user, clear of the progress bar."""
    tqdm.write(shown(sentence, keep="\n"), file=sys.stderr)


def _is_complete(folder: StoreFolder, plan: dict[str, Any], source: Source, overwrite: bool) -> bool:
    """Make sure ``out`` may be written; True when it already holds what is asked for."""
    root = folder.root
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root}: this is a file. Name a folder.")
    with contextlib.suppress(OSError):
        if root.exists() and os.path.samefile(root, source.location):
            raise InputError(f"--out {root}: this is the source itself. Name another folder.")
    if not root.is_dir() or not any(root.iterdir()):
        return False
    if {path.name for path in root.iterdir()} == {folder.unfinished.name} and not folder.plan.is_file():
        return False  # ended before anything was planned
    if not folder.exists():
        raise InputError(
            f"--out {root}: the folder holds files but no store, and nothing in it will be touched. Name another one."
        )
    if overwrite:
        check_inputs(root, {"the source": source.location})
        with _alone(folder) if folder.unfinished.is_dir() else contextlib.nullcontext():
            kept = folder.remove()
        if set(kept) - {folder.unfinished.name}:
            tell(f"{root} also holds what is of no store, and it stays: {', '.join(kept)}.")
        return False
    found = read_facts(folder)["options"] if folder.is_finished() else _read_plan(folder)["options"]
    if found == plan:
        if not folder.is_finished():
            _check_key(folder)
        return folder.is_finished()
    differs = [name for name in {**plan, **found} if found.get(name) != plan.get(name)]
    state = "holds a store" if folder.is_finished() else "holds an unfinished store"
    if "source" in differs:
        cause = "from another source, or its files have changed"
    elif "annotations" in differs:
        cause = "with other annotations (classes, masks, boxes, parts)"
    else:
        cause = "with other options: " + ", ".join(f"{name} was {found.get(name)}" for name in differs)
    raise InputError(f"--out {root}: it {state} made {cause}. Add --overwrite to replace it, or name another folder.")


def _unwritable(folder: StoreFolder, error: OSError) -> InputError:
    return InputError(f"--out {folder.root}: it cannot be written there ({error.strerror}). Name another folder.")


def _read_plan(folder: StoreFolder) -> dict[str, Any]:
    try:
        plan = json.loads(folder.plan.read_text("utf-8"))
        shards = [list(map(int, ends)) for ends in plan["shards"]]
        return {"options": dict(plan["options"]), "shards": shards, "key": plan.get("key")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"--out {folder.root}: the unfinished store there has lost its plan. Add --overwrite to begin again."
        ) from None


def _check_key(folder: StoreFolder) -> None:
    """A store continued under another key would hold the same patient under two names, and splits would part them."""
    if _read_plan(folder)["key"] != key_check():
        raise InputError(
            f"--out {folder.root}: the unfinished store there was begun under another secret key, so that the same "
            f"patient would go by two names in it. {use_the_key()}, or add --overwrite to begin again."
        )


def _begin(folder: StoreFolder, plan: dict[str, Any], source: Source) -> list[Shard]:
    """The shards of the plan, made now or when the store was begun."""
    if folder.plan.is_file():
        return [Shard(number, *ends) for number, ends in enumerate(_read_plan(folder)["shards"])]
    shards = plan_shards(source)
    try:
        folder.unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if full_disk(error):
            raise
        raise _unwritable(folder, error) from None
    ends = [[shard.first, shard.last] for shard in shards]
    write_text(folder.plan, dump({"options": plan, "shards": ends, "key": key_check()}))
    return shards


def plan_shards(source: Source) -> list[Shard]:
    """Which records go to which shard: equal numbers of consecutive ones, decided by the source alone."""
    raw = []
    for index in _spread(len(source), 64):
        with contextlib.suppress(Exception):  # whatever is wrong with a scan is told when its turn comes
            header = source.header(index)
            raw.append(header.channels * float(np.prod(header.size)) * (source.dims - 1))
    per_shard = _SHARD_BYTES / max(1.0, float(np.mean(raw))) if raw else 1.0
    several = max(_LEAST_RECORDS[source.dims], len(source) / _MANY_SHARDS)
    step = max(1, int(min(per_shard, several, _MOST_RECORDS)))
    firsts = range(0, len(source), step)
    return [Shard(number, first, min(first + step, len(source))) for number, first in enumerate(firsts)]


def _spread(length: int, count: int) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64))]


def _alone(folder: StoreFolder) -> Lock:
    """Keep a second command from packing the same store; workers of a killed one finish the record they are at."""
    return Lock(folder.lock, f"--out {folder.root}", inherited=True, patience=_PATIENCE)


def _remaining(folder: StoreFolder, shards: list[Shard]) -> dict[int, int]:
    """Records still to do of each shard that is not complete."""
    remaining = {}
    for shard in shards:
        if not folder.shard(shard.number).exists():
            journal = folder.journal(shard.number)
            done = journal.read_bytes().count(b"\n") if journal.exists() else 0
            remaining[shard.number] = max(0, shard.last - shard.first - done)
    return remaining


class _TooLarge(InputError):
    """There is no room for the store."""


def _check_room(folder: StoreFolder, source: Source, shards: list[Shard], remaining: dict[int, int]) -> None:
    """Foretell the size of the store from what is there, or from a few records, and compare with the free space."""
    left = sum(remaining.values())
    if left == 0:
        return
    written = sum(path.stat().st_size for path in folder.written() if path.parent == folder.shards)
    whole = sum(s.last - s.first for s in shards if s.number not in remaining)
    if written:
        each = written / whole
    else:
        sizes = []
        for index in _spread(len(source), _PROBES[source.dims]):
            with contextlib.suppress(Exception):
                sizes.append(len(pack_scan(source.read(index))[0]))
        each = float(np.mean(sizes)) if sizes else 0.0
    needed = left * (each + _INDEX_BYTES)
    free = shutil.disk_usage(folder.root).free
    numbers = f"about {size_words(needed)} more are needed for {left} records and {size_words(free)} are free"
    if free < needed / 2:  # the estimate may well be off by a third
        raise _TooLarge(f"--out {folder.root}: {numbers}. Make room, or name a folder on another disk.")
    if free < needed * 1.1:
        tell(
            f"The disk of {folder.root} may not be large enough: {numbers}. A full disk does no harm to what is packed."
        )


def _write_shards(
    source: Source,
    labels: Labels | None,
    folder: StoreFolder,
    shards: list[Shard],
    quantize: bool,
    num_workers: int,
    bar: tqdm,
) -> None:
    """Write shards here, or spread them over processes; the bytes are the same."""
    workers = min(num_workers, len(shards))
    if workers <= 1:
        for shard in shards:
            options: dict[str, Any] = {"quantize": quantize, "labels": labels}
            write_shard(source, folder, shard, progress=bar.update, go_on=lambda: True, **options)
        return
    context = multiprocessing.get_context()
    done, stop = context.Value("q", 0), context.Value("b", 0, lock=False)
    shared = _Shared(source, folder, quantize, done, stop, labels)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(shared,))
    pending: set[Future[None]] = set()
    shown = 0
    try:
        pending = {executor.submit(_work, shard) for shard in shards}
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(done.value - shown)
            shown = done.value
            for future in finished:
                future.result()
    finally:
        stop.value = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(shared: _Shared) -> None:
    global _shared, _parent
    _shared, _parent = shared, Parent()
    import torch

    # A forked process has none of its parent's OpenMP threads, and would wait for them for ever.
    torch.set_num_threads(1)
    end_with_parent()  # a killed parent cannot say stop; one that hears a signal tells the workers


def _work(shard: Shard) -> None:
    shared, parent = _shared, _parent
    assert shared is not None
    assert parent is not None

    def progress(records: int) -> None:
        with shared.done.get_lock():
            shared.done.value += records

    def go_on() -> bool:
        return not shared.stop.value and parent.lives()

    with contextlib.suppress(Stopped):
        options: dict[str, Any] = {"quantize": shared.quantize, "labels": shared.labels}
        write_shard(shared.source, shared.folder, shard, progress=progress, go_on=go_on, **options)


def progress_bar(what: str, total: int, done: int = 0, *, quiet: bool) -> tqdm:
    """A bar with time left, counting scans."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit="scan",
        desc=what,
        disable=quiet,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 30.0,  # in a log file a line every 30 s is enough
    )
