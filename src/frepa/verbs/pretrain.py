"""`frepa pretrain`: train an encoder on unlabelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from frepa.errors import InputError, nearest
from frepa.options import grouped
from frepa.pretraining.methods.registry import METHODS
from frepa.pretraining.options import Data, Execution, Optimisation, Settings, Watching
from frepa.verbs._result import RunResult


def _with_preset(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, and beneath it what the preset says."""
    preset, method = given.get("preset"), given.get("method", "frepa")
    if preset is None:
        return given
    if not isinstance(method, str | Mapping):
        raise InputError("preset: it sets the method's options too, so give the method by its name.")
    asked = {"name": method} if isinstance(method, str) else dict(method)
    known = getattr(METHODS.options(str(asked.get("name"))), "presets", {})
    if preset not in known:
        raise InputError(f"--preset {preset}: method {asked.get('name')} has no such preset. {nearest(preset, known)}")
    return {**known[preset], **given, "method": {**known[preset].get("method", {}), **asked}}


@grouped(_with_preset)
def pretrain(
    source: str,
    *,
    out: str,
    method: Annotated[Any, METHODS] = "frepa",
    preset: str | None = None,
    encoder: str | None = None,
    start_from: str | None = None,
    guide: str = "frangi",
    guide_as: Literal["input", "target"] = "input",
    data: Data,
    optimisation: Optimisation,
    watching: Watching,
    execution: Execution,
) -> RunResult:
    """Pretrain an encoder on unlabelled images or volumes, so that fine detail survives.

    Writes a run folder: encoder.safetensors and encoder.json, config.yaml, metrics.jsonl, speed.jsonl, skipped.csv, a
    picture of reconstructions per epoch (100 in a run at most; of volumes crops as NIfTI too), checkpoints, and
    report.html; with --keep best also the best encoder of the run, in best. A run that was killed continues with the
    same command and --resume, and ends with the same weights as one that was not. Ctrl-C or SIGTERM saves the state
    after the step under way and ends with exit code 3. In Python a method's options are an object,
    method=frepa.methods.Frepa(mask_ratio=0.6).

    Args:
        source: a folder, a glob, a file, a manifest (CSV or parquet with a column "path"), dataset-id:folder, or a
            prepared store. Files that belong to a layout as masks are left out; files:FOLDER reads every file.
        out: folder of the run; an existing run is never touched without --resume or --overwrite.
        method: what the encoder is trained by.
        preset: options by one word, beneath those that are given: "paper" is the paper's setting of method frepa.
        encoder: architecture by name, with options after commas: "convnext_atto,output_stride=8". In 2D
            vit_base (the default), vit_tiny, swin_base, convnext_base, ..., timm:NAME; in 3D vit3d_base (the default),
            vit3d_tiny, swinunetr_base, mednext_large, resenc_large, ...
        start_from: weights to begin with instead of random ones: a run, an encoder file, timm:NAME@FILE, ... Its
            architecture is taken where --encoder names none; input channels are adapted, and what was taken over is
            told.
        guide: what the guide channel holds: frangi or hessian ridges, dark and bright alike, one polarity of them
            (frangi_dark, frangi_bright, hessian_dark, hessian_bright), or none; scales in pixels may follow
            ("frangi_dark:1-2-3"). The encoder is fed the same downstream.
        guide_as: input: the encoder sees the guide beside the image; target: it sees the image alone and the decoder
            tells the guide too, so that the encoder keeps plain image channels.
    """
    from frepa.analysis.health import Health
    from frepa.downstream.monitoring import open_monitor
    from frepa.pretraining.run import run_pretraining
    from frepa.pretraining.watching import Instruments

    name, options = METHODS.build(method)
    folder = run_pretraining(
        Settings(
            source,
            out,
            name,
            options,
            encoder,
            start_from,
            guide,
            guide_as,
            data=data,
            optimisation=optimisation,
            watching=watching,
            execution=execution,
        ),
        # What a run is watched with lies in rooms below it, and is handed in.
        Instruments(Health, open_monitor),
    )
    return RunResult(folder)
