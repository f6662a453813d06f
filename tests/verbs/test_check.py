"""`frepa check` as a command: what it prints and writes, what it never writes, and wrong input."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from frepa.checks.findings import KINDS
from frepa.cli import main
from frepa.images.store.packing import pack_source

RNG = np.random.default_rng(3)
IDENTITY = {
    "PatientName": "Quixote^Alonso",
    "PatientID": "QX-4711-55",
    "PatientBirthDate": "15470929",
    "PatientAddress": "Windmill Lane 3",
    "OtherPatientIDs": "ALIAS-99",
    "StudyDate": "16050116",
    "SeriesDate": "16050116",
    "AcquisitionDate": "16050116",
    "StudyTime": "114722",
    "AccessionNumber": "ACC-31337",
    "InstitutionName": "Hospital of La Mancha",
    "ReferringPhysicianName": "Panza^Sancho",
    "StudyDescription": "Knight of the sorrowful face",
    "SeriesDescription": "Rocinante sagittal",
    "ImageComments": "seen by Dulcinea",
    "StationName": "BARBER-BASIN",
}


def write_series(folder: Path, gap: int, count: int = 8) -> None:
    """Slices of a patient who never was, one missing, one truncated, one twice."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    for number in range(count):
        if number == gap:
            continue
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "MR", series, study
        data.Rows, data.Columns, data.SamplesPerPixel = 24, 20, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3.0 * number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [1, 1], 3, number + 1
        data.PixelData = RNG.integers(0, 900, (24, 20)).astype("<u2").tobytes()
        for name, value in IDENTITY.items():
            setattr(data, name, value)
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    cut = folder / "cut.dcm"
    cut.write_bytes((folder / "0.dcm").read_bytes()[:-300])


@pytest.mark.parametrize("dims", [2, 3])
def test_no_word_of_a_patient_in_anything_written(tmp_path: Path, capsys, dims: int) -> None:
    write_series(tmp_path / "scans/train/a", gap=4)
    write_series(tmp_path / "scans/test/b", gap=3)
    out = tmp_path / "report"
    assert main(["check", str(tmp_path / "scans"), "--dims", str(dims), "--out", str(out), "--num-workers", "2"]) == 0
    said = capsys.readouterr()
    table = parquet.read_table(out / "findings.parquet")
    assert {"split patient", "slices missing"} <= set(table["kind"].to_pylist())
    page = (out / "report.html").read_text()
    written = b"".join(path.read_bytes() for path in out.iterdir()) + (said.out + said.err).encode()
    written += str(table.to_pydict()).encode()
    for value in IDENTITY.values():
        for word in (value, *re.split(r"[\^ ]", value)):
            if len(word) > 3 and word != "with":
                assert word.encode() not in written, word
    assert "known patients or studies" in page
    assert "is not looked for" in page.replace("\n", " ")


def test_report_and_table_say_the_same(tmp_path: Path, capsys) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for i in range(5):
        Image.fromarray(RNG.integers(0, 256, (40, 50), dtype=np.uint8)).save(scans / f"{i}.png")
    (scans / "copy.png").write_bytes((scans / "3.png").read_bytes())
    (scans / "cut.png").write_bytes((scans / "2.png").read_bytes()[:500])
    assert main(["check", str(scans), "--out", str(tmp_path / "report"), "--num-workers", "0", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(tmp_path / "report")
    assert "6 scans, 1 unreadable, 0 left out, 1 duplicates" in said
    rows = parquet.read_table(tmp_path / "report/findings.parquet").to_pylist()
    assert [(row["level"], row["kind"], row["file"], row["other"], row["record"]) for row in rows] == [
        ("error", "truncated", "cut.png", "", 6),
        ("warning", "duplicate", "copy.png", "3.png", 5),
    ]
    page = (tmp_path / "report/report.html").read_text()
    order = [page.index(KINDS[row["kind"]].title) for row in rows]
    assert order == sorted(order)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 1
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size[0] > 500
    assert "copy.png" in page
    assert "http" not in re.sub(r'src="data:[^"]+"', "", page)


def test_without_out_nothing_is_written(tmp_path: Path, capsys) -> None:
    Image.fromarray(RNG.integers(0, 256, (40, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["check", str(tmp_path), "--quiet", "--num-workers", "0"]) == 0
    assert "Nothing was found that is wrong with these scans." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_store_is_checked_too(tmp_path: Path, capsys) -> None:
    (tmp_path / "scans").mkdir()
    twin = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
    for name in ("a", "b"):
        Image.fromarray(twin).save(tmp_path / f"scans/{name}.png")
    from frepa.datasets.opening import open_source

    pack_source(open_source(tmp_path / "scans"), tmp_path / "store")
    shard = tmp_path / "store/shards/00000.b2"
    assert main(["check", str(tmp_path / "store"), "--quiet", "--num-workers", "0"]) == 0
    assert "Duplicates" in capsys.readouterr().out
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["check", str(tmp_path / "store"), "--quiet", "--num-workers", "0"]) == 0
    assert "damaged in the store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["NOWHERE"], "does not exist"),
        (["EMPTY"], "No 2D image found"),
        (["TEXTS"], "No 2D image found.*Files with these endings are read"),
        (["SCANS", "--dims", "3"], "No 3D image found.*images with dims 2"),
        (["SCANS", "--out", "SCANS"], "not empty.*--overwrite"),
        (["SCANS", "--out", "SCANS/a.png"], "this is a file. Name a folder"),
        (["SCANS", "--out", "SCANS/a.png", "--overwrite"], "this is a file. Name a folder"),
        (["SCANS", "--out", "SCANS/a.png/report"], "it cannot be written there"),
        (["SCANS", "--num-workers", "-2"], "expected 0 or more"),
        (["drivee:SCANS"], "Did you mean drive"),
    ],
)
def test_wrong_input_is_named_and_ends_with_code_2(tmp_path: Path, capsys, words: list[str], said: str) -> None:
    for name in ("scans", "empty", "texts"):
        (tmp_path / name).mkdir()
    Image.fromarray(RNG.integers(0, 256, (40, 50), dtype=np.uint8)).save(tmp_path / "scans/a.png")
    (tmp_path / "texts/a.txt").write_text("hello")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("scans", "empty", "texts", "nowhere"):
        words = [word.replace(name.upper(), str(tmp_path / name)) for word in words]
    assert main(["check", *words]) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
