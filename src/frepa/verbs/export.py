"""`frepa export`: an encoder in the files of another program."""

from __future__ import annotations

from typing import Literal

from frepa.verbs._result import ExportResult


def export(
    encoder: str,
    *,
    to: Literal["timm", "huggingface", "onnx", "torch", "monai", "nnunet"],
    out: str,
    image_size: int | None = None,
    with_guide: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> ExportResult:
    """Write an encoder in the files of another program, open them again with that program, and compare the outputs.

    What differs by more than rounding is refused and not kept. The largest difference is printed and stands in
    export.json, beside what the input must hold and how the files are opened. Images are given in [0, 1]; the guide of
    an encoder that has one is its last input channel.

    Args:
        encoder: a run folder, an encoder file, or a specification such as timm:NAME@FILE.
        to: "timm": a folder for timm.create_model("local-dir:FOLDER"). "huggingface": a folder for transformers'
            AutoModel and AutoImageProcessor, with frepa[hf]. "onnx": an ONNX file, with frepa[export]. "torch": a file
            for torch.export.load. "monai": a bundle with MONAI's own network class. "nnunet": a checkpoint with the
            adaptation plan that nnU-Net's fine-tuning reads, with frepa[nnunet]. What a kind cannot express is refused,
            with the kinds that can.
        out: folder to write; an existing one is never touched without --overwrite.
        image_size: side in pixels of the images it is for, where one must be chosen: encoders with attention in windows
            become a program for one size. By default the encoder's own.
        with_guide: of "onnx" and "torch": the program makes the guide itself, from the image that it is given.
        overwrite: replace what an earlier export wrote in --out, and nothing else.
        quiet: print nothing but the folder.
    """
    from frepa.exporting.contract import Asked
    from frepa.exporting.run import export_encoder

    def silent(_: str) -> None:
        return None

    asked = Asked(encoder, image_size, with_guide)
    return ExportResult(export_encoder(to, asked, out=out, overwrite=overwrite, tell=silent if quiet else print))
