"""Files made to exhaust, hang or spy: each is refused in a sentence, at once, before memory is asked for.

Promise: no pipe, socket or device is opened, no header reads another folder's files, and nothing is decoded that would
take more than one stated limit of memory.
"""

from __future__ import annotations

import gzip
import os
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from dicom_making import MR, dataset, save, smooth
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.guards import VARIABLE, machine_memory, memory_limit
from frepa.images.readers.registry import reader_at
from frepa.images.scan import Trouble, UnreadableScan

LIMIT = "64M"


@contextmanager
def at_once(megabytes: float = 40.0) -> Iterator[None]:
    """Within two seconds of a processor, which others may use too, and little memory of Python's and NumPy's own."""
    start, computed = time.perf_counter(), time.process_time()
    tracemalloc.start()
    try:
        yield
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < megabytes * 2**20, most
    assert time.process_time() - computed < 2.0
    assert time.perf_counter() - start < 20.0


def refused(path: Path, *, dims: int = 2, words: str, kind: Trouble) -> None:
    """Refused when the source is opened or its first record read, in one sentence and as one kind of trouble."""
    manifest = path.parent / "manifest.csv"
    manifest.write_text(f"path\n{path.name}\n")
    for source in (path.parent, manifest):
        with at_once(), pytest.raises((UnreadableScan, InputError)) as caught:
            open_source(source, dims=dims).read(0)
        reason = str(caught.value)
        assert words in reason or "No 2D image" in reason, reason
        assert "\n" not in reason
        assert not isinstance(caught.value, UnreadableScan) or caught.value.kind == kind


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, LIMIT)


def test_the_limit_is_stated_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert memory_limit() == max(2**28, machine_memory() // 2)
    for text, expected in (("16G", 2**34), ("500 MB", 500 * 2**20), ("1.5GiB", 3 * 2**29), ("2097152", 2**21)):
        monkeypatch.setenv(VARIABLE, text)
        assert memory_limit() == expected
    for text in ("much", "-1G", "12", "nan", "G"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(InputError, match=VARIABLE):
            memory_limit()


ENDINGS = ("png", "tif", "npy", "npz", "nii", "nii.gz", "hdr", "mhd", "nrrd", "dcm", "h5", "mp4", "pgm.gz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_pipes_are_never_opened(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"x.{ending}")
    refused(tmp_path / f"x.{ending}", words="a named pipe, not a file", kind="not a file")


def test_neither_are_pipes_without_an_ending_sockets_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "IM0001")
    assert reader_at(tmp_path / "IM0001") is None
    with at_once(), pytest.raises(InputError, match="a named pipe"):
        open_source(tmp_path / "IM0001")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    with at_once(), pytest.raises(InputError, match="a device, not a file"):
        open_source(tmp_path / "zero.npy")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            server.bind("x.png")
        finally:
            os.chdir(here)
        with at_once(), pytest.raises(InputError, match="a socket, not a file"):
            open_source(tmp_path / "x.png")


def text_header(path: Path, data: str, *, size: str = "4 4 4", axes: str = "3") -> Path:
    if path.suffix == ".mhd":
        path.write_text(
            f"ObjectType = Image\nNDims = {axes}\nDimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = {data}\n"
        )
    else:
        path.write_text(
            f"NRRD0004\ntype: uchar\ndimension: {axes}\nsizes: {size}\nencoding: raw\ndata file: {data}\n\n"
        )
    return path


@pytest.mark.parametrize("name", ["x.mhd", "x.nhdr"])
def test_headers_read_no_file_of_another_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 64)
    folder = tmp_path / "scans"
    folder.mkdir()
    for data in (str(tmp_path / "secret"), "../secret", "/etc/passwd", "link", "inner/link"):
        text_header(folder / name, data)
        (folder / "inner").mkdir(exist_ok=True)
        for link in (folder / "link", folder / "inner" / "link"):
            if not link.is_symlink():
                link.symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match="outside its own folder"):
            open_source(folder / name, dims=3)
    # Beside it or below it, and in a folder that is itself reached through a link, all is well
    (folder / "voxels").write_bytes(bytes(range(64)))
    (folder / "inner" / "voxels").write_bytes(bytes(range(64)))
    (tmp_path / "linked").symlink_to(folder)
    for place in (folder, tmp_path / "linked"):
        for data in ("voxels", "inner/voxels"):
            text_header(folder / name, data)
            assert open_source(place / name, dims=3).read(0).array.ravel().tolist() == list(range(64))


def test_a_header_whose_data_is_a_pipe_or_whose_axes_make_no_sense(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("x.mhd", "x.nhdr"):
        text_header(tmp_path / name, "pipe")
        with at_once(), pytest.raises(InputError, match="a named pipe"):
            open_source(tmp_path / name, dims=3)
        for axes in ("-1", "99999999999", "17", "x"):
            text_header(tmp_path / name, "LOCAL", axes=axes)
            with at_once(), pytest.raises(InputError, match="damaged header"):
                open_source(tmp_path / name, dims=3)


def test_the_second_file_of_a_pair_is_its_neighbour(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(smooth((4, 4, 4)), np.eye(4)), tmp_path / "x.img")
    (tmp_path / "other").mkdir()
    (tmp_path / "x.img").rename(tmp_path / "other" / "x.img")
    (tmp_path / "inner").mkdir()
    (tmp_path / "x.hdr").rename(tmp_path / "inner" / "x.hdr")
    (tmp_path / "inner" / "x.img").symlink_to(tmp_path / "other" / "x.img")
    with pytest.raises(InputError, match="outside its own folder"):
        open_source(tmp_path / "inner" / "x.hdr", dims=3)


def test_no_python_object_is_in_a_reason(tmp_path: Path) -> None:
    """A header of NumPy's is a literal of Python's, and what is none comes back as an object of its parser."""
    header = b"{'descr': u1, 'fortran_order': False, 'shape': (4, 4)}".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    with pytest.raises(InputError, match="not a NumPy file \\(malformed node or string") as caught:
        open_source(tmp_path / "x.npy")
    assert "object at" not in str(caught.value)


def test_a_tiff_whose_pages_go_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        places = [page.offset for page in file.pages]
    for last, next_place in ((2, places[2]), (2, places[0]), (0, places[0])):
        content = bytearray(path.read_bytes())
        tags = struct.unpack_from("<H", content, places[last])[0]
        struct.pack_into("<I", content, places[last] + 2 + 12 * tags, next_place)
        (tmp_path / "circle.tif").write_bytes(content)
        for dims in (2, 3):
            with at_once(), pytest.raises(InputError, match="lead back to one another"):
                open_source(tmp_path / "circle.tif", dims=dims)


def test_dicom_with_two_thousand_million_frames(tmp_path: Path) -> None:
    data = dataset(np.zeros((2, 8, 8), np.uint8), Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1")
    for frames, words in (("2000000000", "2,000,000,000 frames"), ("900000", "more frames than the file has bytes")):
        data.NumberOfFrames = frames
        save(data, tmp_path / "x.dcm")
        with at_once(), pytest.raises(InputError, match=words):
            open_source(tmp_path / "x.dcm")


def test_a_deflated_dicom_bomb(tmp_path: Path, small_limit: None) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    data = dataset(
        np.zeros((4096, 8192), np.uint8), syntax=DeflatedExplicitVRLittleEndian, Modality="MR", SOPClassUID=MR
    )
    path = save(data, tmp_path / "x.dcm")
    assert path.stat().st_size < 2**16
    refused(path, words="unpacks to more than", kind="too large")


def test_npz_of_little_that_unpacks_to_much(tmp_path: Path, small_limit: None) -> None:
    np.savez_compressed(tmp_path / "x.npz", train_images=np.zeros((2**17, 16, 16), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 2**16
    refused(tmp_path / "x.npz", words=f"set {VARIABLE} if the file is genuine", kind="too large")


def test_a_numpy_header_of_gigabytes(tmp_path: Path) -> None:
    import zipfile

    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 2**26
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header)
    refused(tmp_path / "x.npz", words="damaged or not a NumPy file", kind="damaged")


def png(path: Path, width: int, height: int, bits: int, colour: int) -> Path:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize(("bits", "colour"), [(16, 6), (16, 2), (8, 6), (8, 0)])
def test_png_of_any_depth(tmp_path: Path, small_limit: None, bits: int, colour: int) -> None:
    path = png(tmp_path / "x.png", 2**13, 2**13, bits, colour)
    refused(path, words=f"set {VARIABLE} if the file is genuine", kind="too large")


def h5_chunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", (4, 6000, 6000), "u1", chunks=(4, 6000, 6000), compression="gzip")
        data[0, :10, :10] = 1


def nifti_zeros(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((200, 200, 200))
    header.set_data_dtype(np.float32)
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.write(bytes(2**25))


def tiff_stack(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((30, 1024, 1024), np.uint8), compression="zlib", photometric="minisblack")


@pytest.mark.parametrize(
    ("name", "make", "dims"), [("x.h5", h5_chunk, 2), ("x.nii.gz", nifti_zeros, 3), ("x.tif", tiff_stack, 3)]
)
def test_stacks_and_volumes_are_held_against_the_same_limit(
    tmp_path: Path, small_limit: None, name: str, make: Callable[[Path], None], dims: int
) -> None:
    make(tmp_path / name)
    refused(tmp_path / name, dims=dims, words=f"set {VARIABLE} if the file is genuine", kind="too large")


def test_gz_around_anything_stops_at_the_limit(tmp_path: Path, small_limit: None) -> None:
    with gzip.open(tmp_path / "x.pgm.gz", "wb") as file:
        file.write(b"P5 8 8 255\n")
        for _ in range(80):
            file.write(bytes(2**20))
    refused(tmp_path / "x.pgm.gz", words="unpacks to more than the limit", kind="too large")


def test_extensions_of_a_nifti_header_are_not_unpacked_on_its_word(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((8, 8, 8))
    block = bytearray(header.binaryblock) + bytes((1, 0, 0, 0)) + struct.pack("<ii", 2**30, 0)
    block[344:348] = b"n+1\0"
    for offset in (0.0, 2.0**30, float("nan"), -352.0):
        struct.pack_into("<f", block, 108, offset)
        (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(block) + bytes(2**22)))
        refused(tmp_path / "x.nii.gz", dims=3, words="begin far beyond the header", kind="damaged")


def test_other_formats_under_an_image_name_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    refused(tmp_path / "x.png", words="not an image of the kind its name says", kind="damaged")


def test_what_is_genuine_is_read_all_the_same(tmp_path: Path, small_limit: None) -> None:
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "a.png")
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((50, 16, 16), np.uint8))
    assert len(open_source(tmp_path)) == 51
