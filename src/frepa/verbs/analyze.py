"""`frepa analyze`: what encoders keep, lose and do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from frepa.analysis.registry import ANALYSES
from frepa.verbs._result import RunResult


def analyze(
    kind: Annotated[Any, ANALYSES],
    source: str,
    *,
    encoder: list[str] | None = None,
    out: str,
    dims: Literal[2, 3] | None = None,
    image_size: int | None = None,
    crop_size: int | None = None,
    images: int | None = None,
    window: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    num_workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    anonymous_names: bool = False,
) -> RunResult:
    """Look at what encoders keep of their images, several side by side on one page.

    Writes a folder: results.json with every number, figures/ with every figure as PNG and SVG, report.html and
    config.yaml. frepa analyze KIND --help shows the options of a kind (--kind.NAME).

    Args:
        kind: what is looked at.
        source: images as for every verb: a folder, a glob, a file, a store, a manifest, dataset-id:folder. Its training
            part is fitted on and its test part looked at; a source without parts is divided by patient.
        encoder: an encoder as for every verb (a run, a file, random:NAME, timm:NAME@FILE, ...), once for each; with a
            name of its own as NAME=ENCODER, such as "Frepa=runs/frepa". Where a kind says so, a run of frepa segment or
            classify may stand for one, and its head is used.
        out: folder to write; an existing analysis is never touched without --resume or --overwrite.
        dims: 2 or 3, where no encoder says it.
        image_size: longer side, in pixels, that images are resized to first; by default they keep their own resolution.
        crop_size: side, in pixels, of the parts of images that are looked at; by default 128 in 2D and 48 in 3D, and
            no more than the images. Encoders whose positions do not fit get the next size that fits all.
        images: most images, or parts of images, that are fitted on, and that are looked at; the kind says how many
            otherwise.
        window: CT window for images in HU: lung, abdomen, brain or bone.
        batch_size: images that pass through an encoder at once.
        seed: decides every random draw.
        num_workers: threads that read images ahead; they never change the result.
        resume: continue the analysis in --out: what was finished of it, per encoder, is not computed again.
        overwrite: replace the analysis in --out.
        quiet: no progress bars.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere; config.yaml then holds no
            source.
    """
    from frepa.analysis.run import AnalyzeOptions, run_analysis

    name, options = ANALYSES.build(kind)
    return RunResult(
        run_analysis(
            AnalyzeOptions(
                kind=name,
                options=options,
                source=str(source),
                encoder=[encoder] if isinstance(encoder, str) else list(encoder or ()),
                out=out,
                dims=dims,
                image_size=image_size,
                crop_size=crop_size,
                images=images,
                window=window,
                batch_size=batch_size,
                seed=seed,
                num_workers=num_workers,
                resume=resume,
                overwrite=overwrite,
                quiet=quiet,
                anonymous_names=anonymous_names,
            )
        )
    )
