"""What long lists cost: a small file in `frepa check` and `prepare`, the rows of a manifest in `frepa pretrain`.

    python benchmarks/long_lists.py check prepare --files 15000 --work work
    python benchmarks/long_lists.py pretrain --rows 1000000 --work work

Writes grey PNG files of 64 x 64 below ``--work`` (named a second time where there are many), and prints JSON. ``check``
and ``prepare``: processor milliseconds per file beyond the start, in one process, from all the files less a fifth of
them. ``pretrain``: processor seconds and the most memory of a process that takes one step, by a manifest of so many
rows over a thousand files and by one of a thousand, apart. To compare versions, give each its own PYTHONPATH in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

DISTINCT = 1000


def small_files(work: Path, count: int) -> Path:
    """A folder of ``count`` PNG files, ``DISTINCT`` of them different."""
    folder = work / f"files-{count}"
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:07d}.png"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:07d}.png", path)
            continue
        image = gaussian_filter(draws.normal(size=(64, 64)), 2)
        Image.fromarray(((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)).save(path)
    return folder


def seconds_of(verb: str, folder: Path, work: Path) -> float:
    """Processor seconds of a verb on a folder, in this process."""
    import frepa

    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    start = time.process_time()
    if verb == "check":
        frepa.check(str(folder), num_workers=0, quiet=True)
    else:
        frepa.prepare(str(folder), out=str(out), num_workers=0, quiet=True)
    return time.process_time() - start


def per_file(verb: str, files: int, work: Path) -> float:
    """Milliseconds of a file, without what the verb takes for any list."""
    few, many = small_files(work, files // 5), small_files(work, files)
    seconds_of(verb, few, work)  # what is loaded once
    less, more = seconds_of(verb, few, work), seconds_of(verb, many, work)
    return 1000 * (more - less) / (files - files // 5)


def first_step(rows: int, work: Path) -> dict[str, float]:
    """Seconds and megabytes of a process that trains for one step on a manifest of so many rows."""
    files = sorted(small_files(work, DISTINCT).iterdir())
    manifest = work / f"rows-{rows}.csv"
    with open(manifest, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "modality", "group"])
        writer.writerows((files[row % DISTINCT].resolve(), "octa", f"patient{row // 7}") for row in range(rows))
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)
    step = "encoder='vit_tiny', image_size=64, batch_size=2, max_steps=1, num_workers=0, quiet=True"
    code = f"import frepa, sys; frepa.pretrain(sys.argv[1], out=sys.argv[2], {step})"
    command = [sys.executable, "-c", code, str(manifest), str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return {
        "rows": rows,
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "seconds": round(time.perf_counter() - start, 1),
        "most_megabytes": used.ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("check", "prepare", "pretrain"))
    parser.add_argument("--files", type=int, default=15000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    for what in asked.what:
        if what == "pretrain":
            for rows in (1000, asked.rows):
                print(json.dumps({"what": what, **first_step(rows, asked.work)}), flush=True)
            continue
        taken = [round(per_file(what, asked.files, asked.work), 3) for _ in range(asked.repeats)]
        print(json.dumps({"what": what, "files": asked.files, "milliseconds_per_file": taken}), flush=True)


if __name__ == "__main__":
    main()
