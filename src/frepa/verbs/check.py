"""`frepa check`: look at scans before a GPU hour is spent on them."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import RunResult


def check(
    source: str,
    *,
    out: str | None = None,
    dims: Literal[2, 3] = 2,
    max_pixels: int | None = None,
    anonymous_names: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult | None:
    """Read every scan once and report what is wrong with it: before a GPU hour is spent, not after.

    Looks for files that are unreadable, truncated, empty or hold NaN; scans that are constant or stored twice; voxel
    sizes, extents, orientations and ranges of values unlike the others'; DICOM series with slices missing or at the
    same place; CT that is not in Hounsfield units; label files that do not fit their image or lie among the images; and
    the same patient or pixels on two sides of a split (columns "split" and "group" of a manifest, a dataset of the
    catalogue, or folders named train, val and test).

    Prints a summary. With --out, writes a folder with findings.parquet (every finding, with the file's name) and
    report.html (the same for people, with pictures of what is suspicious). Nothing that names a patient is taken from
    the files' headers; file names appear as they are.

    Args:
        source: a folder, a glob, a file, a manifest (CSV or parquet with a column "path"), dataset-id:folder, or a
            store. Files that belong to a layout as masks are held against their images; files:FOLDER reads them too.
        out: folder for the findings and the report; without it, the summary is all.
        dims: 2 for images, and for volumes slice by slice; 3 for volumes.
        max_pixels: pixels (voxels) above which a file is refused as a likely error; by default 2^28 in 2D and 2^30 in
            3D.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere.
        num_workers: processes that read, by default one per processor; they never change the result.
        overwrite: replace the report in --out.
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

    from tqdm import tqdm

    from frepa.checks.findings import write_findings
    from frepa.checks.run import Checked, check_source
    from frepa.checks.summary import summary
    from frepa.datasets.opening import open_source
    from frepa.images.hidden_names import naming
    from frepa.run_folders import check_out, out_folder
    from frepa.user_paths import named_folder

    with naming(anonymous_names, [source], keep=[out]) as names:
        if out is not None:
            check_out(named_folder(out), "check", overwrite=overwrite, inputs={"the source": source})
        opened = open_source(source, dims=dims, max_pixels=max_pixels, canonical=False)
        names.learn(opened)

        def measure() -> Checked:
            with tqdm(total=len(opened), unit="scan", desc="check", disable=quiet or None) as bar:
                checked = check_source(opened, num_workers=num_workers, progress=bar.update).under(names)
            print(summary(checked.findings, checked.facts))
            return checked

        if out is None:
            measure()
            return None
        from frepa.checks.report import write_page  # draws, and what draws takes seconds to import

        # The folder is opened before an hour of reading, not after.
        with out_folder(out, "check", overwrite=overwrite, inputs={"the source": source}) as folder:
            checked = measure()
            folder.start()
            write_findings(checked.findings, folder.root / "findings.parquet")
            write_page(folder.root / "report.html", opened, checked, names)
        return RunResult(folder.root)
