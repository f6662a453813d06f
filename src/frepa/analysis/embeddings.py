"""What an encoder makes of each image of a source, written down: a vector per image, and its map where asked for.

The vector is the mean of the encoder's embedding over its positions, what ``frepa classify --head linear`` reads; of a
slice transfer the mean of what its 2D encoder makes of all slices. Images are brought to one size first, aspect kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.analysis.embedding_files import FILES, Parts, remove_parts, rows_of, schema_of
from frepa.analysis.embedding_page import Looked, look, write_page
from frepa.analysis.neighbours import check_tsne
from frepa.datasets.annotations import SEPARATOR, Annotations
from frepa.datasets.opening import open_annotated
from frepa.downstream.classification.features import common_side
from frepa.downstream.fitting import read_ahead
from frepa.downstream.options import check_least
from frepa.downstream.run import tell
from frepa.encoders.contract import Encoder
from frepa.encoders.framing import encoder_input, framed
from frepa.encoders.reference import EncoderReference, open_encoder
from frepa.errors import InputError, Stopped
from frepa.files import write_json
from frepa.images.anonymity import key_check
from frepa.images.hidden_names import Names, naming
from frepa.images.intensity import check_window, to_unit
from frepa.images.readers.pixels import check_extent
from frepa.images.scan import Skipped, UnreadableScan, write_skipped
from frepa.images.source import Source
from frepa.images.store.records import anonymous_id
from frepa.machine import autocast_dtype, default_device, device_name, versions
from frepa.options import check_seed
from frepa.run_folders import CONFIG, OutFolder, check_same_options, out_folder
from frepa.stopping import StopRequest
from frepa.user_paths import check_source_name

RESULTS, SKIPPED = "results.json", "skipped.csv"
#: What may differ between the command that began a run and the one that continues it; what they stand for may not.
_MAY_CHANGE = frozenset({"encoder", "num_workers", "source", "map", "seed"})
# Images that pass the encoder at once unasked, and positions of all of them: volumes are fewer.
_AT_ONCE, _POSITIONS = 16, 16 * 512 * 512
_HIGHEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What `embed` is told; see the verb."""

    source: str
    encoder: str
    out: str
    dense: str
    format: str
    map: str
    image_size: int | None
    window: str | None
    batch_size: int | None
    num_workers: int
    precision: str
    seed: int
    resume: bool
    overwrite: bool
    quiet: bool
    anonymous_names: bool = False

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_source_name(self.source)
        check_least(1, batch_size=self.batch_size)
        check_least(0, num_workers=self.num_workers)
        check_extent("image_size", self.image_size, 2)
        check_window(self.window)
        check_seed(self.seed)
        if self.map == "tsne":
            check_tsne()

    def kept(self) -> dict[str, Any]:
        """What ``config.yaml`` holds."""
        left_out = ("resume", "overwrite", "quiet", *(["source"] if self.anonymous_names else []))
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class _Read(NamedTuple):
    """A record as the encoder takes it, with its anonymous names; or why there is none."""

    record: int
    frame: np.ndarray | None
    id: str
    group: str | None
    trouble: Skipped | None


def embed_all(options: EmbedOptions) -> Path:
    """Write the embeddings of every image of a source; returns the folder.

    It holds ``embeddings.parquet`` (or ``.npz``), ``report.html``, ``skipped.csv``, ``results.json``, ``config.yaml``.

    Raises:
        InputError: nothing to read, images of another number of axes than the encoder takes, or a run that was begun
            with another encoder or other images.
    """
    options.check()
    go_on = f"Continue with the same command and --resume ({options.out})."
    with (
        naming(options.anonymous_names, [options.source], keep=[options.out, options.encoder]) as names,
        out_folder(
            options.out,
            "embed",
            overwrite=options.overwrite,
            resume=options.resume,
            can_resume=True,
            inputs={"the source": options.source, "--encoder": options.encoder},
            key=names.key,
        ) as out,
        StopRequest(at_once=f"Stopped on request. {go_on}") as stop,
    ):
        encoder, reference = open_encoder(options.encoder)
        if options.dense != "none" and encoder.stacks:
            raise InputError(
                "--dense: a slice transfer has no map of a volume before its blocks are trained. Leave --dense out, or "
                "give the 2D encoder alone: volumes are then read slice by slice."
            )
        known = open_annotated(options.source, encoder.dims, None)
        source = known.source
        names.learn(source)
        side = options.image_size or common_side(source, np.arange(len(source)), slices=encoder.stacks)
        facts = {
            "task": "embedding",
            "encoder": reference.as_dict(),
            "guide": reference.guide,
            "image_size": side,
            "window": options.window,
            "images_read": source.fingerprint,
            "key": key_check(),
        }
        whole = False
        if out.resumed:
            check_same_options(out.root / CONFIG, options.kept(), _MAY_CHANGE)
            whole = _check_same(out.root, facts) and (out.root / FILES[options.format]).is_file()
        device = default_device()
        _announce(reference, source, side, device)
        out.start(options.kept())
        if whole:
            remove_parts(out.root)
            tell("All of it is done already.")
            return out.root
        write_json(out.root / RESULTS, facts)
        parts = Parts(out.root)
        with stop.deferred():
            embedder = _Embedder(encoder.to(device), side, device, autocast_dtype(options.precision, device))
            _encode(embedder, known, options, facts, parts, names, stop, go_on)
        left_out = [*map(names.skipped, source.skipped), *parts.skipped.values()]
        write_skipped(out.root / SKIPPED, left_out)
        if not parts.rows:
            first = left_out[0]
            raise InputError(f"{options.source}: none of the images can be read. {first.path}: {first.reason}")
        _finish(out, parts, known, facts, options, reference, left_out, names)
    told = f"; {len(left_out):,} images are left out, see {SKIPPED}" if left_out else ""
    tell(f"{parts.rows:,} embeddings{told}.")
    return out.root


def _finish(
    out: OutFolder,
    parts: Parts,
    known: Annotations,
    facts: dict[str, Any],
    options: EmbedOptions,
    reference: EncoderReference,
    left_out: Sequence[Skipped],
    names: Names,
) -> None:
    """The file of all rows, the page, and the summary; then the parts go."""
    parts.join(options.format)
    records = np.setdiff1d(np.arange(len(known.source)), np.fromiter(parts.skipped, np.int64, len(parts.skipped)))
    looked: Looked = look(parts, known, records)
    summary = {
        **facts,
        "source": names.place(options.source),
        "file": FILES[options.format],
        "images": parts.rows,
        "left_out": len(left_out),
        "channels": looked.vectors.shape[1],
        "dense": looked.dense,
        "test": looked.found.scores,
        "warnings": names.tree(list(known.source.warnings)),
        "device": device_name(default_device()),
        "versions": versions(),
    }
    write_page(
        out.root / "report.html",
        summary,
        looked,
        known.source,
        reference,
        map=options.map,
        seed=options.seed,
        window=options.window,
        workers=options.num_workers,
    )
    write_json(out.root / RESULTS, summary)
    remove_parts(out.root)


class _Embedder:
    """An encoder with what is needed to put images before it."""

    def __init__(self, encoder: Encoder, side: int, device: torch.device, autocast: torch.dtype | None) -> None:
        self.encoder, self.side, self.device, self._autocast = encoder, side, device, autocast
        encoder.eval()

    @property
    def at_once(self) -> int:
        """Images that pass at once unless the user says otherwise; of a slice transfer slices are parted anyway."""
        if self.encoder.stacks:
            return 1
        return max(1, min(_AT_ONCE, _POSITIONS // self.side**self.encoder.dims))

    @torch.no_grad()
    def __call__(self, frames: Sequence[np.ndarray], dense: bool) -> tuple[Tensor, Tensor | None]:
        """Vectors (n, C) and, where asked for, maps (n, C, *s) of framed images; float32, on the CPU."""
        inputs = [encoder_input(self.encoder, frame, self.device) for frame in frames]
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            if self.encoder.stacks:
                stacks = [self.encoder.encode_frozen(volume[None]).dense[0] for volume in inputs]
                return torch.stack([stack.float().flatten(1).mean(1) for stack in stacks]).cpu(), None
            features = self.encoder(torch.stack(inputs))
        pooled = features.embedding.float().flatten(2).mean(2).cpu()
        return pooled, features.dense.float().cpu() if dense else None


def _encode(
    embedder: _Embedder,
    known: Annotations,
    options: EmbedOptions,
    facts: dict[str, Any],
    parts: Parts,
    names: Names,
    stop: StopRequest,
    go_on: str,
) -> None:
    """Embeddings of the records that are not on disk yet, a batch at a time.

    Batches are the same wherever a run was stopped, and so are the last bits of what is computed.
    """
    total = len(known.source)
    size = options.batch_size or embedder.at_once
    batch: list[_Read] = []
    with tqdm(total=total, initial=parts.next, unit="image", desc="Encoding", disable=options.quiet,
              dynamic_ncols=True) as bar:  # fmt: skip
        for item in _records(embedder, known, options, parts.next, names):
            batch.append(item)
            bar.update()
            if len(batch) == size or item.record == total - 1:
                unread = {one.record: one.trouble for one in batch if one.trouble is not None}
                parts.add(item.record + 1, _table(embedder, known, options, facts, batch, names), unread)
                batch = []
            if stop.requested:
                parts.flush()
                raise Stopped(f"Stopped on request. {go_on}")
    parts.flush()


def _table(
    embedder: _Embedder,
    known: Annotations,
    options: EmbedOptions,
    facts: dict[str, Any],
    batch: Sequence[_Read],
    names: Names,
) -> pa.Table | None:
    """Rows of a batch; None where no image of it could be read."""
    good = [item for item in batch if item.frame is not None]
    if not good:
        return None
    half, wanted = options.dense == "half", options.dense != "none"
    pooled, maps = embedder([item.frame for item in good if item.frame is not None], wanted)
    _check_values(pooled, maps, [known.source.name(item.record) for item in good], options)
    arrays = {"embedding": pooled.numpy()}
    if maps is not None:
        arrays["dense"] = (maps.half() if half else maps).numpy()
    shape = None if maps is None else tuple(maps.shape[1:])
    return rows_of(
        schema_of(pooled.shape[1], shape, half, facts), [_texts(item, known, names) for item in good], arrays
    )


def _records(
    embedder: _Embedder, known: Annotations, options: EmbedOptions, first: int, names: Names
) -> Iterator[_Read]:
    source, groups = known.source, known.groups

    def read(record: int) -> _Read:
        try:
            scan = source.read(record)
            frame = framed(embedder.encoder, to_unit(scan, window=options.window), embedder.side)
        except UnreadableScan as error:
            return _Read(record, None, "", None, names.skipped(error.skipped(source.name(record))))
        own = groups[record]
        return _Read(record, frame, scan.id, scan.group or (None if own is None else anonymous_id(str(own))), None)

    return read_ahead(read, range(first, len(source)), options.num_workers)


def _texts(item: _Read, known: Annotations, names: Names) -> dict[str, str | None]:
    classes, name = known.labels[item.record], known.source.name(item.record)
    if classes is not None and names.hidden:
        # A folder for each patient looks like a folder for each class.
        classes = tuple(names.name(one) if one in PurePosixPath(name).parts[:-1] else one for one in classes)
    return {
        "id": item.id,
        "name": names.name(name),
        "label": None if classes is None else SEPARATOR.join(classes),
        "split": known.splits[item.record],
        "group": item.group,
    }


def _check_values(pooled: Tensor, maps: Tensor | None, names: Sequence[str], options: EmbedOptions) -> None:
    """Raise InputError where an encoder gives no numbers, or larger ones than half precision holds."""
    finite = torch.isfinite(pooled).all(1)
    large = torch.zeros_like(finite)
    if maps is not None:
        finite &= torch.isfinite(maps).flatten(1).all(1)
        if options.dense == "half":
            large = maps.flatten(1).abs().amax(1) > _HIGHEST_HALF
    for name, whole, beyond in zip(names, finite.tolist(), large.tolist()):
        if not whole:
            raise InputError(
                f"--encoder {options.encoder}: what it makes of {name} is infinite or not a number. Try --precision "
                "fp32; if that is no better the weights are damaged."
            )
        if beyond:
            raise InputError(
                f"--dense half: the map of {name} holds values above {_HIGHEST_HALF:,.0f}, which half precision cannot "
                "hold. Give --dense full."
            )


def _check_same(root: Path, facts: dict[str, Any]) -> bool:
    """Refuse to continue what was begun with another encoder, other images or another key; whether it is finished."""
    try:
        before = json.loads((root / RESULTS).read_text("utf-8"))
        hashes = (before["encoder"]["weights"], before["images_read"], before["key"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"--resume: {root / RESULTS} is damaged, so nobody knows what the run was begun with. Start again with "
            "--overwrite."
        ) from None
    now = (facts["encoder"]["weights"], facts["images_read"], facts["key"])
    what = ("another encoder", "other images: files were added, removed or altered", "another secret key for names")
    for was, own, words in zip(hashes, now, what):
        if was != own:
            raise InputError(
                f"--resume: {root} was begun with {words}, and its embeddings would be of both. Start again with "
                "--overwrite, or name another folder."
            )
    return "images" in before


def _announce(reference: EncoderReference, source: Source, side: int, device: torch.device) -> None:
    tell(reference.sentence(device_name(device)))
    if reference.trained:
        tell("Its vector of a volume is the mean over what the 2D encoder makes of each slice.")
    kind = ("image" if source.dims == 2 else "volume") + "s" * (len(source) != 1)
    tell(f"{len(source):,} {kind}, brought to {side} {'pixels' if source.dims == 2 else 'voxels'} a side.")
    for sentence in source.warnings:
        tell(sentence)
