"""``hf:FOLDER``: vision encoders in a local folder as transformers writes and reads it (the extra ``frepa[hf]``).

CLIP, SigLIP, DINOv2 (RAD-DINO is one), DINOv2 with registers, DINOv3, InternVL's vision tower (InternViT, also as its
authors publish it, alone or in a larger model such as MedDr), SAM and plain ViT.
Nothing is fetched, and no code of the folder is run.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder, Features, StageShape, quarters
from frepa.encoders.foreign import TrunkInput, read_state_dict
from frepa.encoders.intern_vit import MODEL_TYPE, in_transformers_names, in_transformers_words
from frepa.encoders.published import SAM_SCALING, sam_of
from frepa.encoders.registry import Scheme, register, register_scheme
from frepa.errors import InputError, first_line, nearest
from frepa.names import shown

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class _Family(NamedTuple):
    """A kind of ``model_type``: transformers' class, the inner config that describes it where it is part of a larger
    model, mean and std where the folder does not say, what of a larger model's names is left out, and how the class
    is told to leave out what nothing here reads.
    """

    model: str
    inner: str | None = None
    scaling: tuple[Sequence[float], Sequence[float]] = IMAGENET
    prefix: str | None = None
    how: tuple[tuple[str, Any], ...] = ()


FAMILIES = {
    "clip": _Family("CLIPVisionModel", "vision_config", _CLIP),
    "clip_vision_model": _Family("CLIPVisionModel", None, _CLIP),
    "siglip": _Family("SiglipVisionModel", "vision_config", _HALF),
    "siglip_vision_model": _Family("SiglipVisionModel", None, _HALF),
    "dinov2": _Family("Dinov2Model"),
    "dinov2_with_registers": _Family("Dinov2WithRegistersModel"),
    "dinov3_vit": _Family("DINOv3ViTModel"),
    "internvl": _Family("InternVLVisionModel", "vision_config", IMAGENET, r"^(model\.)?vision_tower\."),
    "internvl_vision": _Family("InternVLVisionModel"),
    "internvl_chat": _Family("InternVLVisionModel", "vision_config"),
    MODEL_TYPE: _Family("InternVLVisionModel"),
    "vit": _Family("ViTModel", None, _HALF, None, (("add_pooling_layer", False),)),
}
# Kinds that are built as SAM's own files are, because there they take any size.
_SAM = ("sam", "sam_vision_model")
# transformers' names of SAM's image encoder, and SAM's own
_FROM_TRANSFORMERS = [
    (r"^(vision_model\.)?vision_encoder\.", ""), (r"\blayers\.", "blocks."), (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^patch_embed\.projection", "patch_embed.proj"), (r"^neck\.conv1", "neck.0"), (r"^neck\.layer_norm1", "neck.1"),
    (r"^neck\.norm1", "neck.1"), (r"^neck\.conv2", "neck.2"), (r"^neck\.(layer_)?norm2", "neck.3"),
]  # fmt: skip


class TokenEncoder(Encoder):
    """A vision transformer of transformers, of whose last hidden state the patches are the map.

    ``dense`` and ``embedding`` are that map; tokens for the class and registers are left out. The guide is dropped.

    Args:
        name: ``hf:MODEL_TYPE``, or ``hf:FOLDER``, of which the architecture is then taken.
        image_channels: channels of the image, those of the model.
        guide: has no input here, and is "none".
        architecture: the model's configuration as transformers writes it.
        mean, std: per image channel, applied inside to images in [0, 1].
        image_size: side in pixels that it was trained at; positions are interpolated for others.
    """

    trunk: Any

    def __init__(
        self,
        name: str,
        *,
        image_channels: int | None = None,
        guide: str = "none",
        architecture: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        uses_guide: bool = False,
    ) -> None:
        del guide, uses_guide  # of any encoder's description; there is no input for the guide
        transformers = _transformers(name)
        folder: Path | None = None
        if architecture is None:
            folder = Path(name.removeprefix("hf:"))
            found = read_folder(folder)
            architecture, mean, std = found.architecture, mean or found.mean, std or found.std
        kind = str(architecture["model_type"])
        family = _family(kind, folder or kind)
        with quietly(transformers):
            cls = getattr(transformers, family.model)
            trunk = cls(cls.config_class.from_dict(dict(architecture)), **dict(family.how))
        config = trunk.config
        stride, depth, channels = _side(config.patch_size), int(config.num_hidden_layers), int(config.hidden_size)
        super().__init__(
            name=f"hf:{kind}",
            dims=2,
            image_channels=int(config.num_channels),
            guide="none",
            uses_guide=False,
            channels=channels,
            embedding_channels=channels,
            stride=stride,
            size_multiple=stride,
            options={"architecture": dict(architecture)},
        )
        self.folder = folder
        self.input = TrunkInput(name, self.image_channels, 2, uses_guide=False, mean=mean, std=std)
        self.options |= self.input.options
        self.trunk = trunk
        self._looks = quarters(depth)
        known = inspect.signature(cls.forward).parameters
        self._how = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}

    @property
    def untrained(self) -> str:
        """The specification of the same architecture at random initialisation; its folder says what it is."""
        return f"random:hf:{self.folder}" if self.folder is not None else f"random:{self.name}"

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """At a quarter, half, three quarters and all of the depth."""
        return (StageShape(self.channels, (int(self.stride),) * 2),) * len(self._looks)  # type: ignore[arg-type]

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, H, W), H and W multiples of the patch."""
        x = self.input(x)
        dense = self._map(self.trunk(pixel_values=x, **self._how).last_hidden_state, x)
        return Features(dense, dense)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """Maps of (B, in_channels, H, W) along the trunk; the last is ``dense``."""
        x = self.input(x)
        found = self.trunk(pixel_values=x, output_hidden_states=True, **self._how)
        # The first hidden state is what goes into the first block.
        maps = [found.hidden_states[look + 1] for look in self._looks[:-1]]
        return [self._map(tokens, x) for tokens in (*maps, found.last_hidden_state)]

    def _map(self, tokens: Tensor, x: Tensor) -> Tensor:
        """(B, prefix + h * w, C) to (B, C, h, w)."""
        side = int(self.stride)  # type: ignore[arg-type]
        grid = tuple(n // side for n in x.shape[2:])
        patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block."""
        super().set_grad_checkpointing(enable)
        if enable:
            self.trunk.gradient_checkpointing_enable()
        else:
            self.trunk.gradient_checkpointing_disable()


class Folder(NamedTuple):
    """What a folder says: the vision model's configuration, and mean and std of its images in [0, 1].

    ``intern_vit``: its tensors have the names of InternViT's own code.
    """

    architecture: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    intern_vit: bool


def read_folder(folder: Path) -> Folder:
    """The vision model that a Hugging Face folder describes; no weights are read.

    Raises:
        InputError: no such folder, no config.json in it, or a kind of model that is not known here.
    """
    config = _json(folder, "config.json")
    kind = str(config.get("model_type"))
    family = _family(kind, folder)
    if family.inner is not None:
        inner = config.get(family.inner)
        if not isinstance(inner, dict):
            raise InputError(f"hf:{folder}: config.json has no {family.inner!r}, so nothing says how it sees images.")
        defaults = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "internvl": "internvl_vision",
                    "internvl_chat": MODEL_TYPE}  # fmt: skip
        config = {"model_type": defaults[kind], **inner}
    own = config["model_type"] == MODEL_TYPE
    config = in_transformers_words(config, folder) if own else config
    return Folder(config, *read_scaling(folder, int(config.get("num_channels", 3)), family.scaling), own)


def read_scaling(
    folder: Path, channels: int, otherwise: tuple[Sequence[float], Sequence[float]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of images in [0, 1] that a folder's image processor takes; ``otherwise`` where it has none."""
    mean, std = otherwise
    if (folder / "preprocessor_config.json").is_file():
        said = _json(folder, "preprocessor_config.json")
        if said.get("do_normalize", True):
            mean, std = said.get("image_mean", mean), said.get("image_std", std)
        else:
            mean, std = (0.0,) * channels, (1.0,) * channels
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"hf:{folder}: its images have {channels} channels, and mean and std are {mean} and {std}.")
    return tuple(map(float, mean)), tuple(map(float, std))


def load_hf(text: str, options: dict[str, Any]) -> Encoder:
    """The vision encoder in a Hugging Face folder, in evaluation mode.

    Raises:
        InputError: nothing there, a kind that is not known, weights that are missing, or unsafe ones.
    """
    folder = Path(text)
    kind = str(_json(folder, "config.json").get("model_type"))
    if kind in _SAM:
        return _load_sam(folder, options)
    transformers = _transformers(f"hf:{text}")
    if read_folder(folder).intern_vit:
        return _load_intern_vit(folder, options)
    with torch.random.fork_rng(devices=[]):
        encoder = TokenEncoder(f"hf:{text}", **options)
        family = _family(kind, folder)
        how = dict(family.how) | ({} if family.prefix is None else {"key_mapping": {family.prefix: ""}})
        try:
            with quietly(transformers):
                model, about = type(encoder.trunk).from_pretrained(
                    str(folder),
                    config=encoder.trunk.config,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **how,
                )
        except pickle.UnpicklingError:
            raise InputError(
                f"hf:{folder}: its weights cannot be read: they hold Python objects beside tensors, and running them "
                "is not safe. If you trust them, load the model in Python and save it as safetensors."
            ) from None
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"hf:{folder}: its weights cannot be read: {first_line(error)}") from None
    _check_whole(folder, about["missing_keys"] or about["mismatched_keys"])
    encoder.trunk.load_state_dict(model.state_dict())
    return encoder


def _check_whole(folder: Path, keys: Iterable[object], what: str = "are missing or of another shape") -> None:
    """Raise InputError where there are such tensors."""
    names = sorted(map(str, keys))
    if names:
        raise InputError(
            f"hf:{folder}: its weights do not hold the vision encoder that config.json describes: {len(names)} "
            f"tensors {what}, such as {names[0]}."
        )


def _load_intern_vit(folder: Path, options: dict[str, Any]) -> Encoder:
    """InternViT under the names of its own code, alone or as ``vision_model`` of a larger model."""
    with torch.random.fork_rng(devices=[]):
        encoder = TokenEncoder(f"hf:{folder}", **options)
    state = _tensors(folder, lambda key: re.match(r"(vision_model\.)?(embeddings|encoder)\.", key) is not None)
    state = in_transformers_names({key.removeprefix("vision_model."): value for key, value in state.items()})
    own = encoder.trunk.state_dict()
    _check_whole(folder, (key for key in own if key not in state or state[key].shape != own[key].shape))
    _check_whole(folder, (key for key in state if key not in own), "have no place in it")
    encoder.trunk.load_state_dict(state)
    return encoder


def _tensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors of a folder's files whose names are wanted; of safetensors nothing else is read."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"hf:{folder}: its weights cannot be read: there is no model.safetensors.")
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_state_dict(file, wanted)
    return found


def _load_sam(folder: Path, options: dict[str, Any]) -> Encoder:
    """SAM's image encoder."""
    own = _tensors(folder, lambda key: "vision_encoder." in key)
    for pattern, name in _FROM_TRANSFORMERS:
        own = {re.sub(pattern, name, key): value for key, value in own.items()}
    mean, std = read_scaling(folder, 3, (SAM_SCALING["mean"], SAM_SCALING["std"]))
    return sam_of(folder, own, {"mean": list(mean), "std": list(std), **options})


def _family(kind: str, where: object) -> _Family:
    if kind not in FAMILIES:
        known = [*FAMILIES, *_SAM]
        raise InputError(f"{where}: a model of the kind {kind!r} is not known here. {nearest(kind, known)}")
    return FAMILIES[kind]


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(
            f"hf:{shown(folder)}: this folder does not exist. Give a local folder as Hugging Face writes it; nothing "
            "is fetched."
        )
    try:
        found = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"hf:{shown(folder)}: has no {name}, so it is no Hugging Face folder.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"hf:{shown(folder)}: {name} cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"hf:{shown(folder)}: {name} does not describe a model.")
    return found


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(f"{name} needs the package transformers. Install it with pip install 'frepa[hf]'.") from None
    return transformers


@contextlib.contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """No bars and no warnings of transformers: what is wrong is said here."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _side(patch: Any) -> int:
    if isinstance(patch, int):
        return patch
    sides = {int(side) for side in patch}
    if len(sides) != 1:
        raise InputError(f"patches of {patch} pixels are not square, which is not supported.")
    return sides.pop()


register("hf:", dims=2)(TokenEncoder)
register_scheme("hf", Scheme(load_hf, absolute=lambda rest: str(Path(rest).resolve())))
