"""`frepa demo`: the whole path on images the package makes itself."""

from __future__ import annotations

from frepa.verbs._result import RunResult


def demo(
    *,
    out: str = "demo",
    seed: int = 0,
    num_workers: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Pretrain, freeze, segment and compare on generated angiograms, in a few minutes on two CPU cores.

    Draws angiograms with exact vessel masks, pretrains a small encoder on unlabelled ones, trains the same light head
    on the frozen encoder, on the same architecture at random initialisation, and on that without the guide channel,
    and writes report.html with losses, reconstructions, the table and overlays. Needs no data and no network.

    Args:
        out: folder for the images, the runs and the report.
        seed: decides the images, the initial weights and every random draw.
        num_workers: processes that read images; they never change the result.
        overwrite: replace an earlier demo in --out.
        quiet: no progress bars.
    """
    from frepa.user_paths import named_folder
    from frepa.verbs._demo import run_demo

    return RunResult(run_demo(named_folder(out), seed=seed, num_workers=num_workers, overwrite=overwrite, quiet=quiet))
