"""`frepa prepare`: pack scans into a store that training reads fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from frepa.verbs._result import RunResult


def prepare(
    source: str,
    *,
    out: str | None = None,
    dims: Literal[2, 3] = 2,
    quantize: bool = False,
    voi: bool = False,
    keep_names: bool = False,
    anonymous_names: bool = False,
    label_folders: bool = False,
    max_pixels: int | None = None,
    num_workers: int | None = None,
    verify: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Read scans of any format once, check them, and pack them into a store that training reads fast.

    A store is a folder that stands wherever a source is asked for. Pixels are kept without loss: CT as whole Hounsfield
    units in 16 bits, 8-bit images in 8 bits, deeper ones in 16, floats that are not whole numbers as 32-bit floats.
    Spacing, orientation, modality, anonymous group and the percentiles that scale each scan are kept with them. So is
    what the source knows of its images: classes, boxes, parts, folds, and masks and fields of view on the grid of
    their images, without loss. segment, classify and detect take the store as they take the files.

    If the command is killed or the disk runs full, give it again: it continues where it stopped and ends with the same
    bytes. Scans that cannot be used are left out and listed with the reason, by anonymous id in skipped.csv and by file
    name in STORE.skipped.csv beside the store. The store itself holds no file names and nothing that names a patient.

    Args:
        source: a folder, a glob, a file, a manifest (CSV or parquet with a column "path"), dataset-id:folder, or
            another store. With --verify, the store to verify.
        out: folder of the store. One begun with the same source and options is continued; another store is never
            touched without --overwrite.
        dims: 2 for images, and for volumes slice by slice; 3 for volumes.
        quantize: make floats smaller, with loss: CT is rounded to whole Hounsfield units, anything else to 65,536 equal
            steps between its minimum and maximum.
        voi: apply the display window or table that DICOM files carry, except to CT: for X-ray images whose stored
            values are raw detector readings.
        keep_names: keep each scan's name within the source, and each patient's as the source has it, so that a record
            can be traced to its file and a random division by patient is that of the files. Names may identify
            patients.
        anonymous_names: say keyed hashes instead of names of files on the screen and in STORE.skipped.csv too.
        label_folders: the folder of an image is its class (benign/1.png). Without it folders are not kept, since they
            may be the names of patients.
        max_pixels: pixels (voxels) above which a file is refused as a likely error; by default 2^28 in 2D and 2^30 in
            3D.
        num_workers: processes that read and pack, by default one per processor; they never change the result.
        verify: instead of packing, compare every record of the store with its hash, and list damaged ones on the screen
            and in damaged.csv.
        overwrite: replace the store in --out.
        quiet: no progress bar.
    """
    from frepa.errors import InputError
    from frepa.processors import processors

    if num_workers is None:
        num_workers = processors()
    if num_workers < 0:
        raise InputError(f"--num-workers {num_workers}: expected 0 or more.")
    if num_workers > 10_000:
        raise InputError(f"--num-workers {num_workers}: expected 10,000 at most.")
    if verify:
        if out is not None or overwrite:
            raise InputError(
                "--verify looks at a store and writes none: give the store's folder, without --out or --overwrite."
            )
        return RunResult(_verify(source, num_workers, quiet))
    if out is None:
        raise InputError("--out is missing: name the folder of the store to write.")
    if keep_names and anonymous_names:
        raise InputError("--keep-names and --anonymous-names contradict each other: give one of them.")

    from frepa.datasets.opening import open_source
    from frepa.datasets.packing import stored_labels
    from frepa.images.hidden_names import naming
    from frepa.images.store.packing import pack_source, tell

    with naming(anonymous_names, [source], keep=[out]) as names:
        opened = open_source(source, dims=dims, max_pixels=max_pixels, voi=voi)
        names.learn(opened)
        for sentence in filter(None, [opened.aside, *opened.warnings]):
            tell(sentence)
        labels = stored_labels(
            opened,
            native=lambda axes: open_source(source, dims=axes, max_pixels=max_pixels, canonical=False, voi=voi),
            keep_names=keep_names,
            label_folders=label_folders,
        )
        facts = pack_source(
            opened,
            out,
            labels=labels,
            quantize=quantize,
            keep_names=keep_names,
            names=names,
            num_workers=num_workers,
            overwrite=overwrite,
            quiet=quiet,
        )
        train = f"frepa pretrain {out}" + (" --dims 3" if dims == 3 else "")
        tell(f"{facts['records']} scans in {facts['shard_bytes'] / 1e6:.1f} MB. Train on them with {train}.")
        if labels is not None and labels.said():
            tell(labels.said())
    return RunResult(out)


def _verify(store: str, num_workers: int, quiet: bool) -> Path:
    from frepa.errors import InputError
    from frepa.images.store.packing import progress_bar, tell
    from frepa.images.store.source import StoreSource
    from frepa.images.store.verify import verify_store

    count = len(StoreSource(store))
    with progress_bar("verify", count, quiet=quiet) as bar:
        damaged = verify_store(store, num_workers=num_workers, progress=bar.update)
    if damaged:
        shown = "\n".join(f"  record {item.record} ({item.name}, {item.shard}): {item.reason}" for item in damaged[:20])
        more = f"\n  and {len(damaged) - 20} more" if len(damaged) > 20 else ""
        raise InputError(
            f"{len(damaged)} of {count} records of {store} are damaged; {Path(store) / 'damaged.csv'} lists them.\n"
            f"{shown}{more}\nTraining skips them. Copy the shards again from where they are whole, or pack the store "
            "again with --overwrite."
        )
    tell(f"All {count} records of {store} are as they were packed.")
    return Path(store)
