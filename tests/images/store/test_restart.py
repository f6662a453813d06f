"""Killed, out of disk, started twice: what ends up in the store is what an undisturbed run would have written."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from store_helpers import ArraySource, Drawn, contents, write_pictures

from frepa.datasets.opening import open_source
from frepa.errors import InputError, RunEnded
from frepa.images.scan import Scan, UnreadableScan
from frepa.images.store import index, layout, packing, shards
from frepa.images.store.packing import pack_source, plan_shards

FORK = multiprocessing.get_context("fork")


def in_child(act: Callable[[], None]) -> int:
    """Exit code of a process that does ``act``; negative for a signal."""
    process = FORK.Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def kill_me(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(module: object, name: str, number: int, act: Callable[..., None]) -> None:
    """Replace a function so that its ``number``-th call becomes ``act`` with the same arguments."""
    original, calls = getattr(module, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(module, name, counted)


def half_then_killed(handle: int, data: bytes) -> None:
    os.write(handle, data[: len(data) // 2])
    kill_me()


def all_then_killed(handle: int, data: bytes) -> None:
    os.write(handle, data)
    kill_me()


# Where a process can be killed; _write is called for the data and the journal line of each record in turn
MOMENTS = {
    "before the first record": (packing, "write_shard", 1, kill_me),
    "before there is a plan": (packing, "write_text", 1, kill_me),
    "amid a record's data": (shards, "_write", 41, half_then_killed),
    "between data and journal": (shards, "_write", 41, all_then_killed),
    "amid a journal line": (shards, "_write", 42, half_then_killed),
    "after a journal line": (shards, "_write", 42, all_then_killed),
    "before a shard is renamed": (shards, "sync_to_disk", 1, kill_me),
    "after a shard was renamed": (shards, "sync_to_disk", 2, kill_me),
    "before the index": (packing, "write_index", 1, kill_me),
    "amid the index": (index, "_write_skipped", 1, kill_me),
    "after the index was moved": (index, "file_digest", 1, kill_me),
    "before store.json": (index, "write_text", 1, kill_me),
    "before the last clean-up": (packing, "_clean", 1, kill_me),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures, one of them broken, and the store of them and of their masks that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_pictures(root / "pictures")
    (root / "pictures/020.png").write_bytes(b"\x89PNG but no more")
    pack_source(open_source(root / "pictures"), root / "whole", labels=Drawn(60))
    return root / "pictures", root / "whole"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_no_trace(tmp_path: Path, undisturbed: tuple[Path, Path], moment: str) -> None:
    source, whole = open_source(undisturbed[0]), undisturbed[1]

    def attempt() -> None:
        at_call(*MOMENTS[moment])
        pack_source(source, tmp_path / "again", labels=Drawn(60))

    assert in_child(attempt) == -signal.SIGKILL
    pack_source(source, tmp_path / "again", labels=Drawn(60))
    assert contents(tmp_path / "again") == contents(whole)
    assert not (tmp_path / "again/unfinished").exists()
    assert (tmp_path / "again.skipped.csv").read_bytes() == whole.with_name("whole.skipped.csv").read_bytes()


def test_finished_records_are_not_read_again(tmp_path: Path, pictures: Path, monkeypatch) -> None:
    source = open_source(pictures)

    def attempt() -> None:
        at_call(shards, "_write", 61, half_then_killed)  # the data of the 31st record
        pack_source(source, tmp_path / "store")

    assert in_child(attempt) == -signal.SIGKILL
    read = []
    original = type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, i: read.append(i) or original(self, i))
    monkeypatch.setattr(packing, "_check_room", lambda *_: None)  # it packs a few records to foretell the size
    pack_source(source, tmp_path / "store")
    assert read == list(range(30, 60))


def test_data_lost_behind_the_journal_is_written_again(tmp_path: Path, pictures: Path) -> None:
    # As after a power failure: the journal reached the disk and some of the data did not
    source = open_source(pictures)
    pack_source(source, tmp_path / "whole")

    def attempt() -> None:
        at_call(shards, "_write", 31, kill_me)
        pack_source(source, tmp_path / "again")

    in_child(attempt)
    part = tmp_path / "again/unfinished/00000.part"
    data = bytearray(part.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    part.write_bytes(data)
    pack_source(source, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_workers_change_nothing(tmp_path: Path, undisturbed: tuple[Path, Path]) -> None:
    pack_source(open_source(undisturbed[0]), tmp_path / "three", labels=Drawn(60), num_workers=3)
    assert contents(tmp_path / "three") == contents(undisturbed[1])


def test_workers_do_not_wait_for_the_threads_their_parent_had(tmp_path: Path) -> None:
    """A forked process has none of its parent's OpenMP threads, and would wait for them for ever.

    Images are large enough that torch shares the counting of their values between threads, in the parent too, which
    probes a few of them for the room they need.
    """
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    for number in range(36):
        Image.fromarray(np.roll(noise, number)).save(tmp_path / "pictures" / f"{number:02d}.png", compress_level=1)
    words = [sys.executable, "-m", "frepa.cli", "prepare", str(tmp_path / "pictures"), "--out", str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([*words, "--num-workers", "2", "--quiet"], check=True, timeout=60, env=environment)
    assert len(open_source(tmp_path / "store")) == 36


def test_shards_follow_from_the_source_alone() -> None:
    small = ArraySource([Scan(np.zeros((1, 8, 8), np.uint8))] * 100, 2)
    assert [(s.first, s.last) for s in plan_shards(small)][:2] == [(0, 16), (16, 32)]
    assert plan_shards(small)[-1].last == 100
    large = ArraySource([Scan(np.zeros((1, 2**13, 2**13), np.uint8))] * 20, 2)
    assert [s.last - s.first for s in plan_shards(large)] == [4] * 5
    broken = ArraySource([None] * 3, 3)
    assert len(plan_shards(broken)) == 3


def test_a_second_command_waits_and_gives_up(tmp_path: Path, pictures: Path, monkeypatch) -> None:
    source = open_source(pictures)
    monkeypatch.setattr(packing, "_PATIENCE", 0.3)
    folder = layout.StoreFolder(tmp_path / "store")
    packing._begin(folder, packing._plan(source, quantize=False, keep_names=False), source)
    with packing._alone(folder), pytest.raises(InputError, match=f"process {os.getpid()} on .* at work there since"):
        pack_source(source, tmp_path / "store")
    pack_source(source, tmp_path / "store")


def test_full_disk_while_writing(tmp_path: Path, pictures: Path, monkeypatch) -> None:
    source = open_source(pictures)
    pack_source(source, tmp_path / "whole")
    room, original = [60_000], os.write

    def write(handle: int, data: bytes) -> int:
        written = min(len(data), room[0])
        room[0] -= written
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle, data[:written])

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "write", write)
        with pytest.raises(RunEnded, match=r"disk of .*store is full.*packed so far is kept.*give the same command"):
            pack_source(source, tmp_path / "store")
    with pytest.raises(InputError, match="not finished"):
        open_source(tmp_path / "store")
    pack_source(source, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_limit_on_file_size_ends_with_code_1(tmp_path: Path, pictures: Path, capfd, workers: int) -> None:
    from frepa.cli import main

    words = ["prepare", str(pictures), "--out", str(tmp_path / "store"), "--num-workers", str(workers), "--quiet"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        os._exit(main(words))

    assert in_child(limited) == 1
    said = capfd.readouterr().err
    assert "has grown as large as files may here" in said
    assert "Traceback" not in said
    assert main(words) == 0
    assert len(open_source(tmp_path / "store")) == 60


def test_no_room_is_noticed_before_and_between(tmp_path: Path, pictures: Path, monkeypatch, capsys) -> None:
    source = open_source(pictures)
    usage, free = shutil.disk_usage(tmp_path), [10_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    with pytest.raises(InputError, match=r"about .* more are needed for 60 records and 10.0 kB are free"):
        pack_source(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    with pytest.raises(InputError, match=r"10.0 kB are free"):
        pack_source(source, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    free[0] = 500_000  # enough for these images, but less than what has to stay free
    with pytest.raises(RunEnded, match=r"store is full \(500\.0 kB left, of which 67\.1 MB are kept free"):
        pack_source(source, tmp_path / "store")
    free[0] = 2**30
    pack_source(source, tmp_path / "store")
    assert len(open_source(tmp_path / "store")) == 60


def test_one_scan_that_breaks_its_reader_is_left_out(tmp_path: Path) -> None:
    class Odd(ArraySource):
        def read(self, index: int) -> Scan:
            if index == 3:
                raise KeyError("PatientName MILLER")
            return super().read(index)

        def header(self, index: int):
            raise UnreadableScan("x", "no header")

    pack_source(Odd([Scan(np.full((1, 5, 5), i, np.uint8)) for i in range(6)], 2), tmp_path / "store")
    assert len(open_source(tmp_path / "store")) == 5
    assert "could not be packed (KeyError)" in (tmp_path / "store/skipped.csv").read_text()


def test_a_store_is_not_overwritten_by_another(tmp_path: Path, pictures: Path, capsys) -> None:
    source = open_source(pictures)
    pack_source(source, tmp_path / "store")
    before = contents(tmp_path / "store")
    pack_source(source, tmp_path / "store")
    assert "complete" in capsys.readouterr().err
    assert contents(tmp_path / "store") == before
    with pytest.raises(InputError, match="quantize was False"):
        pack_source(source, tmp_path / "store", quantize=True)
    (pictures / "020.png").unlink()
    fewer = open_source(pictures)
    with pytest.raises(InputError, match=r"from another source, or its files have changed.*--overwrite"):
        pack_source(fewer, tmp_path / "store")
    pack_source(fewer, tmp_path / "store", overwrite=True)
    assert len(open_source(tmp_path / "store")) == 59
    with pytest.raises(InputError, match="no store, and nothing in it will be touched"):
        pack_source(fewer, pictures / "b", overwrite=True)
    with pytest.raises(InputError, match="the source itself"):
        pack_source(fewer, pictures, overwrite=True)


def test_umask_decides_who_may_read(tmp_path: Path, pictures: Path) -> None:
    before = os.umask(0o027)
    try:
        pack_source(open_source(pictures), tmp_path / "store")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "store").rglob("*") if path.is_file()} == {0o640}


class Slow(ArraySource):
    """Takes a while for each record, so that a process can be killed meanwhile; one record may be deadly."""

    deadly = -1

    def read(self, index: int) -> Scan:
        if index == self.deadly and packing._shared is not None:  # in a worker
            kill_me()
        time.sleep(0.01)
        return super().read(index)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    # One that has ended, but whose new parent has not yet taken notice, is in state Z
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    source = Slow([Scan(np.full((1, 9, 9), i, np.uint8)) for i in range(64)], 2)
    pids = FORK.Queue()

    def attempt() -> None:
        original = packing._start_worker
        packing._start_worker = lambda shared: (pids.put(os.getpid()), original(shared))
        pack_source(source, tmp_path / "store", num_workers=2)

    parent = FORK.Process(target=attempt)
    parent.start()
    workers = [pids.get(timeout=20) for _ in range(2)]
    while not list((tmp_path / "store/unfinished").glob("*.jsonl")):
        time.sleep(0.01)
    parent.kill()
    parent.join()
    pack_source(source, tmp_path / "store")  # at once: it has to wait for their lock
    assert len(open_source(tmp_path / "store")) == 64
    patience = time.monotonic() + 20
    while any(running(pid) for pid in workers):
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_a_worker_lost_to_the_system_is_told(tmp_path: Path) -> None:
    source = Slow([Scan(np.full((1, 9, 9), i, np.uint8)) for i in range(64)], 2)
    source.deadly = 20

    def attempt() -> None:
        try:
            pack_source(source, tmp_path / "store", num_workers=2)
        except packing.WorkerLost as error:
            os._exit(17 if "fewer than 2 --num-workers, and it continues" in str(error) else 1)

    assert in_child(attempt) == 17
    source.deadly = -1
    pack_source(source, tmp_path / "store")
    assert [int(open_source(tmp_path / "store").read(i).array[0, 0, 0]) for i in (0, 20, 63)] == [0, 20, 63]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied"),
            InputError,
            r"cannot be written there \(Permission denied\)",
        ),
        (OSError(errno.EDQUOT, "Quota exceeded"), RunEnded, "Your quota on the disk of .* is full"),
        (MemoryError(), packing.WorkerLost, "Memory ran out.*continues"),
    ],
)
def test_what_the_system_refuses_is_told(tmp_path: Path, pictures: Path, monkeypatch, fault, kind, words) -> None:
    source = open_source(pictures)
    (tmp_path / "store").mkdir()

    def refused(*_: object, **__: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shard", refused)
        with pytest.raises(kind, match=words):
            pack_source(source, tmp_path / "store")
    pack_source(source, tmp_path / "store")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments(tmp_path: Path, shared_data: Path) -> None:
    """The command itself with two workers on images of several formats, its parent killed while it is writing."""
    source = shared_data / "pretrain_manifest.csv"
    words = [sys.executable, "-m", "frepa.cli", "prepare", str(source), "--num-workers", "2", "--quiet", "--out"]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True)
    folder = layout.StoreFolder(tmp_path / "again")

    def written() -> int:
        return sum(path.stat().st_size for path in folder.root.rglob("*.jsonl"))

    draw, progress = random.Random(0), [0]
    while len(progress) <= 10:
        process = subprocess.Popen([*words, str(folder.root)], stderr=subprocess.DEVNULL)
        while written() <= progress[-1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        progress.append(written())
    assert not folder.is_finished()
    print(json.dumps({"bytes of journal at each kill": progress}))
    subprocess.run([*words, str(folder.root)], check=True, capture_output=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
