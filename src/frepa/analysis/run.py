"""`frepa analyze`: encoders, a source and a folder, the same for every analysis."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from frepa.analysis.contract import Analysis, AnalysisPage, Study, Subject
from frepa.analysis.own_names import named
from frepa.analysis.parts import Parts, Unchanged, finished_content, known_figures
from frepa.analysis.registry import find_analysis
from frepa.downstream.head_files import WEIGHTS
from frepa.downstream.options import check_least
from frepa.downstream.run import tell
from frepa.downstream.trained import load_head
from frepa.encoders.files import WEIGHTS as BUNDLED
from frepa.encoders.reference import EncoderReference, open_encoder
from frepa.errors import InputError
from frepa.files import plain, write_json
from frepa.images.hidden_names import naming
from frepa.images.intensity import ANY_WINDOW, check_window
from frepa.images.readers.pixels import check_extent
from frepa.machine import default_device, device_name, versions
from frepa.options import check_seed
from frepa.run_folders import CONFIG, check_same_options, out_folder
from frepa.stopping import StopRequest

RESULTS = "results.json"
#: What may differ between the command that began an analysis and the one that continues it; what an encoder or a source
#: holds decides which parts are computed anew, wherever it lies.
_MAY_CHANGE = frozenset({"out", "encoder", "source", "num_workers"})


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What `analyze` is told; see the verb. ``kind`` and ``options``: the analysis and its own options."""

    kind: str
    options: Any
    source: str
    encoder: Sequence[str]
    out: str
    dims: int | None
    image_size: int | None
    crop_size: int | None
    images: int | None
    window: str | None
    batch_size: int
    seed: int
    num_workers: int
    resume: bool
    overwrite: bool
    quiet: bool
    anonymous_names: bool = False

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_seed(self.seed)
        check_window(self.window)
        if self.window == ANY_WINDOW:
            raise InputError("--window any: a window is drawn for each image only in pretraining. Name one of them.")
        check_extent("image_size", self.image_size, self.dims or 2)
        check_extent("crop_size", self.crop_size, self.dims or 2)
        check_least(2, images=self.images)
        check_least(1, batch_size=self.batch_size)
        check_least(0, num_workers=self.num_workers)

    def kept(self) -> dict[str, Any]:
        """What ``config.yaml`` holds: ``--config`` reads it again."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("kind", "options")}
        own["encoder"] = list(self.encoder)
        dropped = ("resume", "overwrite", "quiet", *(["source"] if self.anonymous_names else []))
        return {"kind": {"name": self.kind, **asdict(self.options)}} | {
            n: v for n, v in own.items() if n not in dropped
        }


def run_analysis(options: AnalyzeOptions) -> Path:
    """Open what is named, analyse, and write the folder; returns it.

    It holds ``results.json``, ``figures/`` (PNG and SVG), ``report.html`` and ``config.yaml``.

    Raises:
        InputError: anything the user can mend; nothing was written then, as far as it shows before measuring.
    """
    options.check()
    go_on = f"Continue with the same command and --resume ({options.out})."
    analysis = find_analysis(options.kind).build(options.options)
    analysis.check()
    encoders = [named(text)[1] for text in options.encoder]
    inputs = {"the source": options.source, "--encoder": encoders}
    with (
        naming(options.anonymous_names, [options.source], keep=[options.out, *encoders]) as names,
        out_folder(
            options.out, "analyze", overwrite=options.overwrite, resume=options.resume, can_resume=True, inputs=inputs,
            key=names.key,
        ) as out,
        StopRequest(at_once=f"Stopped on request. What is finished is kept. {go_on}"),
    ):  # fmt: skip
        if out.resumed:
            check_same_options(out.root / CONFIG, options.kept(), _MAY_CHANGE)
        device = default_device()
        subjects = open_subjects(options.encoder, analysis, device, options.dims)

        @functools.cache
        def begin() -> None:
            out.start(options.kept())

        parts = Parts(
            out.root,
            [{n: v for n, v in options.kept().items() if n not in _MAY_CHANGE}, device.type],
            [(subject.name, subject.content) for subject in subjects],
            begin=begin,
            finished=finished_content(out.root / RESULTS) if out.resumed else None,
            names=names,
        )
        study = Study(
            source=options.source, dims=subjects[0].encoder.dims if subjects else options.dims or 2, subjects=subjects,
            image_size=options.image_size, crop_size=options.crop_size, images=options.images, window=options.window,
            batch_size=options.batch_size, seed=options.seed, num_workers=options.num_workers, device=device,
            quiet=options.quiet, names=names, parts=parts,
        )  # fmt: skip
        for subject in subjects:
            print(f"{subject.name}: {subject.reference.sentence(device_name(device))}", file=sys.stderr)
        page = AnalysisPage(f"{analysis.title}: {_shown(names.place(options.source))}", analysis.question)
        try:
            found = analysis.analyse(study, page)
        except Unchanged:
            parts.remove()
            tell("All of it is done already.")
            return out.root
        results = {
            "analysis": options.kind,
            "content": parts.content,
            "source": names.place(options.source),
            "encoders": {subject.name: subject.reference.as_dict() for subject in subjects},
            "inputs": names.tree(study.inputs),
            "notes": names.tree(study.notes),
            "scores": found.scores,
            "numbers": found.numbers,
            "figures": list(page.files),
            "device": device_name(device),
            "versions": versions(),
        }
        _finish(page, study, options, results)
        begin()
        page.write(out.root, before=known_figures(out.root / RESULTS))
        write_json(out.root / RESULTS, results)  # the last, for it says that the analysis is whole
        parts.remove()
        if parts.taken:
            tell(f"{parts.taken} {'part' if parts.taken == 1 else 'parts'} of it had been finished before.")
        for sentence in study.notes:
            print(sentence, file=sys.stderr)
    return out.root


def open_subjects(
    texts: Sequence[str], analysis: Analysis, device: torch.device, dims: int | None
) -> tuple[Subject, ...]:
    """The encoders, each under a name of its own, all of one number of axes.

    Raises:
        InputError: too few, one that is none, or of other axes than the others (or than ``dims``).
    """
    if len(texts) < analysis.least:
        raise InputError(
            f"--encoder missing: {'one is' if analysis.least == 1 else f'{analysis.least} are'} needed. Give "
            "--encoder once for each, such as --encoder RUN --encoder random:convnext_atto."
        )
    found: list[Subject] = []
    for text in texts:
        given, place = named(text)
        head = None
        if _has_head(Path(place)):
            head = load_head(place, device=device)
            if not analysis.reads_runs:
                raise InputError(
                    f"--encoder {place}: a run with a head for {head.task}, and this analysis looks at encoders. Name "
                    f"the encoder it was trained on: {head.reference.source}."
                )
            encoder, reference = head.models[0].encoder, head.reference
        else:
            encoder, reference = open_encoder(place)
        first = found[0].encoder.dims if found else dims or encoder.dims
        if encoder.dims != first:
            asked = "the others take" if found else "--dims says"
            raise InputError(
                f"--encoder {place}: this is an encoder for {encoder.dims}D images, and {asked} {first}D ones. Analyse "
                "them apart."
            )
        name = given or _name(reference, None if head is None else Path(place).name)
        number, free = 2, name
        while free in {subject.name for subject in found}:
            free, number = f"{name} ({number})", number + 1
        found.append(Subject(free, encoder.to(device), reference, head))
    same = [s for s in found if found[0].reference.weights == s.reference.weights]
    if len(same) == len(found) > 1 and not analysis.reads_runs:
        raise InputError("--encoder: all of them are the same encoder, with equal weights. Name others.")
    return tuple(found)


def _has_head(folder: Path) -> bool:
    """Whether a folder is a run of a head rather than of an encoder; a bundle is both, and counts as an encoder."""
    if not folder.is_dir() or (folder / BUNDLED).is_file():
        return False
    return (folder / WEIGHTS).is_file() or any((folder / name).is_dir() for name in ("folds", "seeds"))


def _name(reference: EncoderReference, run: str | None) -> str:
    method = "untrained" if reference.method == "random" else reference.method
    words = [*([run] if run is not None else []), *([method] if method else []), reference.name]
    return (
        f"{' '.join(words)}, guide {reference.guide}" if reference.guide != "none" else f"{' '.join(words)}, no guide"
    )


def _shown(source: str) -> str:
    return source if len(source) < 80 else f"...{source[-76:]}"


def _finish(page: AnalysisPage, study: Study, options: AnalyzeOptions, results: dict[str, Any]) -> None:
    """What is the same at the end of every page."""
    for sentence in results["notes"]:
        page.note(sentence)
    guides = {subject.reference.guide for subject in study.subjects}
    if len(guides) > 1:
        page.note(
            "The encoders do not all see the same guide channel, which is a factor of its own: compare those that do."
        )
    page.section("How it was made")
    page.table(
        [
            {
                "Encoder": s.name,
                "Architecture": s.reference.name,
                "Pretrained by": s.reference.method or "not stated",
                "Guide": s.reference.guide,
                "Parameters": f"{s.reference.parameters / 1e6:.2f} M",
                "From": s.reference.source,
            }
            for s in study.subjects
        ]
        or [{"Encoder": "none"}]
    )
    page.code("Configuration", yaml.safe_dump(options.kept(), sort_keys=False, allow_unicode=True))
    page.code("Images", json.dumps(plain(results["inputs"]), indent=2))
    page.code("Versions", "\n".join(f"{name} {number}" for name, number in results["versions"].items()))
