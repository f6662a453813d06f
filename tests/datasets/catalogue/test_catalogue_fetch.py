"""Downloads against a web server on this machine that breaks off, refuses ranges, or serves the wrong file."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from frepa.datasets.catalogue import fetch
from frepa.datasets.catalogue.entry import Download, load_entry
from frepa.datasets.catalogue.fetch import FetchError, chosen_downloads, fetch_one, file_name
from frepa.errors import InputError

_DATA = np.random.default_rng(0).bytes(300_000)


class _Server(ThreadingHTTPServer):
    """Serves ``files``; ``break_after`` cuts each answer short, ``ranges`` honours Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {"a.bin": _DATA}
        self.break_after: list[int] = []
        self.ranges = True
        self.status = 200
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range"))
        data = self.server.files.get(self.path.partition("?")[0].lstrip("/"))
        if data is None or self.server.status != 200:
            self.send_error(404 if data is None else self.server.status)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.server.break_after.pop(0) if self.server.break_after else len(data)
        self.wfile.write(data[start : start + cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _download(server: _Server, name: str = "a.bin", data: bytes = _DATA, kind: str = "md5", **more: str) -> Download:
    return Download(f"{server.url}/{name}?download=1", f"{kind}:{hashlib.new(kind, data).hexdigest()}", **more)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_arrives_once(server: _Server, tmp_path: Path, kind: str) -> None:
    seen: list[tuple[int, int | None]] = []
    download = _download(server, kind=kind)
    path = fetch_one(download, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "a.bin"
    assert path.read_bytes() == _DATA
    assert seen[-1] == (len(_DATA), len(_DATA))
    assert fetch_one(download, tmp_path / "new") == path
    assert len(server.asked) == 1
    assert os.listdir(tmp_path / "new") == ["a.bin"]


def test_the_file_has_the_users_permissions(server: _Server, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = fetch_one(_download(server), tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_transfer_that_breaks_off_goes_on(server: _Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 50_000]
    path = fetch_one(_download(server), tmp_path, wait=0)
    assert path.read_bytes() == _DATA
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_an_earlier_one_ended(server: _Server, tmp_path: Path) -> None:
    server.break_after = [100_000] + [0] * 10
    with pytest.raises(FetchError, match="call again to go on") as caught:
        fetch_one(_download(server), tmp_path, wait=0)
    assert caught.value.plain
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / ".a.bin.part").stat().st_size == 100_000
    server.break_after, server.asked = [], []
    assert fetch_one(_download(server), tmp_path).read_bytes() == _DATA
    assert server.asked == ["bytes=100000-"]
    assert not (tmp_path / ".a.bin.part").exists()


def test_a_server_without_ranges_starts_again(server: _Server, tmp_path: Path) -> None:
    server.ranges, server.break_after = False, [100_000]
    assert fetch_one(_download(server), tmp_path, wait=0).read_bytes() == _DATA
    assert server.asked == [None, "bytes=100000-"]


def test_a_whole_part_is_only_checked(server: _Server, tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(_DATA)
    assert fetch_one(_download(server), tmp_path).read_bytes() == _DATA


def test_a_part_of_another_version_is_dropped(server: _Server, tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(b"x" * 1000)
    assert fetch_one(_download(server), tmp_path, wait=0).read_bytes() == _DATA
    assert server.asked == ["bytes=1000-", None]


def test_a_wrong_checksum_leaves_nothing(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="checksum is wrong"):
        fetch_one(_download(server, data=b"other"), tmp_path)
    assert os.listdir(tmp_path) == []


def test_another_file_in_its_place_is_kept(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="is another file"):
        fetch_one(_download(server), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_answers_in_plain_words(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file at .*b\.bin.*--base-url"):
        fetch_one(_download(server, "b.bin"), tmp_path)
    server.status = 403
    with pytest.raises(InputError, match="refuses access"):
        fetch_one(_download(server), tmp_path)
    server.status = 503
    with pytest.raises(FetchError, match="answers 503"):
        fetch_one(_download(server), tmp_path)
    with pytest.raises(InputError, match="no web address"):
        fetch_one(_download(server), tmp_path, base_url="file:///etc")


def test_nobody_answers(tmp_path: Path) -> None:
    with _Server() as closed:
        download = _download(closed)
    with pytest.raises(FetchError, match="cannot be fetched"):
        fetch_one(download, tmp_path, wait=0)


def test_a_mirror_holds_the_same_file(server: _Server, tmp_path: Path) -> None:
    download = Download("https://example.invalid/records/1/files/a.bin?download=1", _download(server).checksum)
    assert fetch_one(download, tmp_path, base_url=server.url + "/").read_bytes() == _DATA


def test_a_full_disk_is_seen_before_the_transfer(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = fetch.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=(64 << 20) + 1000))
    with pytest.raises(InputError, match="Make room"):
        fetch_one(_download(server), tmp_path)
    assert not (tmp_path / "a.bin").exists()


def _tar(*names: str, link: str | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        if link:
            info = tarfile.TarInfo("Task/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return out.getvalue()


def _zip(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name in names:
            zipped.writestr(name, "abc")
    return out.getvalue()


@pytest.mark.parametrize(("ending", "make"), [("tar", _tar), ("zip", _zip)])
def test_an_archive_is_unpacked_and_removed(server: _Server, tmp_path: Path, ending: str, make) -> None:
    data = make("Task/imagesTr/a.nii.gz", "Task/imagesTr/._a.nii.gz", "__MACOSX/Task/x", "Task/dataset.json")
    server.files = {f"t.{ending}": data}
    download = _download(server, f"t.{ending}", data, unpacks_to="Task")
    assert fetch_one(download, tmp_path) == tmp_path / "Task"
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["Task/dataset.json", "Task/imagesTr/a.nii.gz"]
    fetch_one(download, tmp_path)
    assert len(server.asked) == 1
    kept = tmp_path / "kept"
    fetch_one(download, kept, keep_archive=True)
    assert (kept / f"t.{ending}").read_bytes() == data


@pytest.mark.parametrize("data", [_tar("Task/a", "../evil"), _tar("Task/a", link="../../evil")])
def test_an_archive_that_leads_out_of_its_folder_is_refused(server: _Server, tmp_path: Path, data: bytes) -> None:
    server.files = {"t.tar": data}
    with pytest.raises(InputError, match="cannot be unpacked"):
        fetch_one(_download(server, "t.tar", data, unpacks_to="Task"), tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/t.tar"]


def test_a_damaged_archive_is_named(server: _Server, tmp_path: Path) -> None:
    data = _zip("Task/a")[:-10]
    server.files = {"t.zip": data}
    with pytest.raises(InputError, match=r"t\.zip cannot be unpacked"):
        fetch_one(_download(server, "t.zip", data, unpacks_to="Task"), tmp_path)
    assert not (tmp_path / "Task").exists()


def test_which_files_are_chosen() -> None:
    small = chosen_downloads(load_entry("pneumoniamnist"), None)
    assert [file_name(download.url) for download in small] == ["pneumoniamnist.npz"]
    large = chosen_downloads(load_entry("pneumoniamnist"), {"size": "224"})
    assert [file_name(download.url) for download in large] == ["pneumoniamnist_224.npz"]
    assert len(chosen_downloads(load_entry("pneumoniamnist"), {"all": ""})) == 4
    task = chosen_downloads(load_entry("msd"), {"task": "task04_hippocampus"})
    assert [download.unpacks_to for download in task] == ["Task04_Hippocampus"]
    with pytest.raises(InputError, match="Choose with --only"):
        chosen_downloads(load_entry("msd"), None)
    with pytest.raises(InputError, match="Did you mean size=64"):
        chosen_downloads(load_entry("pneumoniamnist"), {"size": "65"})
    with pytest.raises(InputError, match=r"drive\.grand-challenge\.org.*registration.*datasets verify drive"):
        chosen_downloads(load_entry("drive"), None)


def test_addresses_and_checksums_of_medmnist() -> None:
    """Against the publisher's own list, release 3.0.2."""
    known = {
        "pneumoniamnist.npz": "28209eda62fecd6e6a2d98b1501bb15f",
        "octmnist_224.npz": "abc493b6d529d5de7569faaef2773ba3",
        "adrenalmnist3d.npz": "bbd3c5a5576322bc4cdfea780653b1ce",
        "adrenalmnist3d_64.npz": "17721accfe9fb005146a47d33bc54b2f",
    }
    for name, digest in known.items():
        entry = load_entry(name.removesuffix(".npz").partition("_")[0])
        (download,) = (one for one in entry.downloads if file_name(one.url) == name)
        assert download.checksum == f"md5:{digest}"
        assert download.url == f"https://zenodo.org/records/10519652/files/{name}?download=1"


def test_checksums_of_real_files(shared_data: Path) -> None:
    for name in ("adrenalmnist3d.npz", "adrenalmnist3d_64.npz"):
        (download,) = (one for one in load_entry("adrenalmnist3d").downloads if file_name(one.url) == name)
        digest = hashlib.md5((shared_data / "MedMNIST" / name).read_bytes()).hexdigest()
        assert download.checksum == f"md5:{digest}"
