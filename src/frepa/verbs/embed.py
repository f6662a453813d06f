"""`frepa embed`: what an encoder makes of each image, written down and looked at."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import RunResult


def embed(
    source: str,
    *,
    encoder: str,
    out: str,
    dense: Literal["none", "half", "full"] = "none",
    format: Literal["parquet", "npz"] = "parquet",
    map: Literal["pca", "tsne"] = "pca",
    image_size: int | None = None,
    window: str | None = None,
    batch_size: int | None = None,
    num_workers: int = 2,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    anonymous_names: bool = False,
) -> RunResult:
    """Write an encoder's embedding of every image of a source, in 2D or 3D as the encoder is. Nothing is trained.

    The folder holds embeddings.parquet: for each image its id and patient (both pseudonyms under your own key), name,
    class and split where they are known, and its embedding averaged over the positions, a fixed-size list of floats;
    the metadata say which encoder made them, by its hash, and how images were brought before it. report.html shows the
    images as points in a plane, and some of them with their nearest neighbours of other patients. Files that cannot be
    read are listed in skipped.csv. A 2D encoder takes volumes slice by slice. A source may be larger than memory.

    Args:
        source: a folder, a glob, a file, a store, a manifest, a labelled set, an npz file as MedMNIST has them, or
            dataset-id:folder.
        encoder: a run folder, an encoder file, random:NAME, timm:NAME[@checkpoint], hf:FOLDER, or slices:ENCODER2D,
            whose vector of a volume is the mean over its slices.
        out: folder to write; an existing one is never touched without --overwrite or --resume.
        dense: also write the dense map of each image, in half or full precision; its shape is in the metadata.
        format: parquet, or npz, arrays of NumPy.
        map: how the page lays the images out: pca, along the two principal axes, or tsne, by scikit-learn.
        image_size: side in pixels that images (slices, of a slice transfer) are brought to, aspect kept and zeros
            around; by default the longest side of the images, at most 512 in 2D and 128 in 3D.
        window: CT window for images in HU: lung, abdomen, brain or bone.
        batch_size: images that pass the encoder at once; by default 16, fewer of large ones.
        num_workers: threads that read images ahead; they never change the result.
        precision: fp32, bf16, or auto: bf16 on a GPU that has it, else fp32.
        seed: of t-SNE; nothing else is random.
        resume: continue the folder in --out that was stopped or killed; starts it when there is none yet.
        overwrite: replace what an earlier embed wrote in --out, and nothing else.
        quiet: no progress bar.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere, and instead of classes that
            are names of folders, since these may be patients.
    """
    from frepa.analysis.embeddings import EmbedOptions, embed_all

    return RunResult(
        embed_all(
            EmbedOptions(
                source=source,
                encoder=encoder,
                out=out,
                dense=dense,
                format=format,
                map=map,
                image_size=image_size,
                window=window,
                batch_size=batch_size,
                num_workers=num_workers,
                precision=precision,
                seed=seed,
                resume=resume,
                overwrite=overwrite,
                quiet=quiet,
                anonymous_names=anonymous_names,
            )
        )
    )
