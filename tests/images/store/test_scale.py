"""Seventeen million records: what opening, sampling and reading cost a process that trains."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frepa.images.store.layout import FORMAT, VERSION, StoreFolder, dump, row_type
from frepa.images.store.packing import pack_source

RECORDS = 17_000_000
PROBE = """
import json, sys, time, pickle
import numpy as np
import torch, frepa.images.loading, frepa.images.store.source
from frepa.datasets.opening import open_source
from frepa.pretraining.training_part import training_part

def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1000

def clock(act):
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result

before = anonymous()
opening, source = clock(lambda: open_source(sys.argv[1]))
crossing, source = clock(lambda: pickle.loads(pickle.dumps(source)))
plain_order, stream = clock(lambda: pickle.loads(pickle.dumps(training_part(source, val_images=8, seed=0).stream)))
plain_seek, _ = clock(lambda: stream.at(range(10**12, 10**12 + 64)))
order, stream = clock(lambda: pickle.loads(pickle.dumps(
    training_part(source, val_images=8, seed=0, weights={"ct": 2, "mr": 1, "xray": 1}).stream)))
seek, drawn = clock(lambda: stream.at(range(10**12, 10**12 + 4000)))
share = np.bincount(np.asarray(source.modality_codes[drawn]), minlength=4) / 4000
reading, _ = clock(lambda: [source.describe(int(i)) for i in drawn[:100]])
scan = source.read(12_345_678)
print(json.dumps(dict(opening=opening, crossing=crossing, plain_order=plain_order, plain_seek=plain_seek, order=order,
    seek=seek, reading=reading, megabytes=anonymous() - before, share=share.tolist(), mean=float(scan.array.mean()),
    groups=len(source.group_codes), length=len(source))))
"""


@pytest.fixture
def seventeen_million(tmp_path: Path) -> Path:
    """A store of one image, its index stretched to seventeen million rows, nearly all of them holes in the file."""
    from store_helpers import ArraySource

    from frepa.images.scan import Scan

    array = (np.arange(64 * 64, dtype=np.uint16) % 251).reshape(1, 64, 64)
    pack_source(ArraySource([Scan(array, modality="ct", group="a")], 2), tmp_path / "store")
    folder = StoreFolder(tmp_path / "store")
    kind = row_type(2, affine=False)
    row = np.fromfile(folder.records, kind)
    with open(folder.records, "wb") as file:
        file.truncate(RECORDS * kind.itemsize)
        file.seek(12_345_678 * kind.itemsize)
        file.write(row.tobytes())
    with open(folder.group, "wb") as file:
        file.truncate(RECORDS * 8)
    np.resize(np.arange(4, dtype="<i4"), RECORDS).tofile(folder.modality)
    np.arange(RECORDS, dtype="<i4").reshape(-1, 4).T.ravel().tofile(folder.by_modality)
    facts = json.loads(folder.facts.read_text())
    facts["records"] = RECORDS
    facts["modalities"] = dict.fromkeys(("ct", "mr", "us", "xray"), RECORDS // 4)
    facts["files"] = {
        name: {"bytes": (folder.root / name).stat().st_size, "sha256": hashlib.sha256(b"").hexdigest()}
        for name in facts["files"]
    }
    assert (facts["format"], facts["version"]) == (FORMAT, VERSION)
    folder.facts.write_text(dump(facts))
    return folder.root


def test_seventeen_million_records_cost_a_process_next_to_nothing(seventeen_million: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(seventeen_million)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["length"] == found["groups"] == RECORDS
    assert found["opening"] + found["crossing"] < 2
    assert max(found["plain_order"] + found["plain_seek"], found["order"] + found["seek"]) < 1
    assert found["megabytes"] < 200
    assert found["share"] == [0.5, 0.25, 0.0, 0.25]
    assert found["mean"] == (np.arange(64 * 64) % 251).mean()
