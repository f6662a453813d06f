"""When the run ends because its samples can no longer be read, and when it goes on; what a continued run is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.store.packing import pack_source
from frepa.pretraining.lost_data import LostData
from frepa.pretraining.source_record import check_source


def _first_end(seen: list[list[bool]], share: float = 0.2, **how: int) -> int | None:
    """Batch, from 1 on, after which the run ends; True stands for a sample that was read."""
    lost = LostData(share, len(seen[0]), **how)
    for number, batch in enumerate(seen, start=1):
        if lost.saw(sum(batch), ["a.png: gone"] * (len(batch) - sum(batch))):
            return number
    return None


def test_a_share_of_damaged_files_is_borne_and_more_is_not():
    fifth, fourth = [[True] * 4 + [False]], [[True] * 3 + [False]]
    assert _first_end(fifth * 200) is None
    # 41 of the window of 200 are too many, however the run began
    assert _first_end(fourth * 200) == 41
    assert _first_end([[True] * 4] * 500 + fourth * 200) == 500 + 41
    assert _first_end(fourth * 200, share=0.3) is None
    assert _first_end(fourth * 200, processes=2) == 21


def test_a_lost_mount_is_noticed_at_once():
    good, gone = [[True] * 4], [[False] * 4]
    assert _first_end(good * 3 + gone * 9) == 3 + 5  # 20 in a row
    assert _first_end(good + [[False] * 64] * 2, share=0.5) == 2  # never less than a batch
    assert _first_end(gone * 4 + good * 100) is None
    assert _first_end(gone * 1000, share=1.0) is None


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for name in ("a/1", "a/2", "b/3", "b/4", "5"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        value = np.full((16, 16), int(name[-1]), np.uint8)
        Image.fromarray(value).save(folder / f"{name}.png")
    return folder


def _check(folder: Path, record: Path, *, accept: bool = False, resumed: bool = True) -> None:
    check_source(record, open_source(folder), resumed=resumed, accept=accept)


def test_a_continued_run_is_told_what_changed(scans, tmp_path):
    record = tmp_path / "source.npz"
    _check(scans, record, resumed=False)
    _check(scans, record)
    assert b"a/1" not in record.read_bytes()
    (scans / "a/1.png").unlink()
    (scans / "b/new.png").write_bytes((scans / "b/3.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(scans / "a/2.png")
    words = r"1 added \(b/new.png\); 1 altered \(a/2.png\); 1 removed \(from a\) \(5 records then, 5 now\)"
    for _ in range(2):  # asking twice changes nothing
        with pytest.raises(InputError, match=words + ".*--accept-changed-source"):
            _check(scans, record)
    _check(scans, record, accept=True)
    _check(scans, record)
    for path in (scans / "b").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"3 removed \(from a folder that is gone\) \(5 records then, 2 now\)"):
        _check(scans, record)
    record.write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        _check(scans, record)


def test_labels_and_stores_that_changed(scans, tmp_path):
    table, record = tmp_path / "list.csv", tmp_path / "source.npz"
    table.write_text("path,label\nscans/5.png,x\nscans/a/1.png,y\n")
    check_source(record, open_source(table), resumed=False, accept=False)
    table.write_text("path,label\nscans/5.png,y\nscans/a/1.png,y\n")
    with pytest.raises(InputError, match="its labels, groups or columns were altered"):
        check_source(record, open_source(table), resumed=True, accept=False)
    pack_source(open_source(scans), tmp_path / "store")
    _check(tmp_path / "store", record, resumed=False)
    (scans / "5.png").unlink()
    pack_source(open_source(scans), tmp_path / "store", overwrite=True)
    with pytest.raises(InputError, match="5 records then, 4 now"):
        _check(tmp_path / "store", record)


def test_a_run_without_a_record_is_compared_by_its_newest_state(scans, tmp_path):
    record = tmp_path / "source.npz"
    source = open_source(scans)
    check_source(record, source, resumed=True, accept=False, fingerprint=source.fingerprint)
    record.unlink()
    with pytest.raises(InputError, match="5 records now"):
        check_source(record, source, resumed=True, accept=False, fingerprint="another")
    assert not record.exists()
