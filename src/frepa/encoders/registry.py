"""Names of encoders, their options, and schemes such as ``timm:`` that stand for encoders with weights.

A new architecture is one file with a ``@register`` and one line in ``_MODULES``; a new scheme one
``register_scheme`` and one line in ``_SCHEME_MODULES``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from frepa.encoders.contract import Encoder
from frepa.errors import InputError, nearest
from frepa.names import shown
from frepa.options import check_seed

# Imported on first use, so that 2D work does not pay for the import of MONAI.
_MODULES = {
    2: (
        "frepa.encoders.timm_2d",
        "frepa.encoders.sam_2d",
        "frepa.encoders.swin_2d",
        "frepa.encoders.hf",
        "frepa.encoders.pixels",
    ),
    3: (
        "frepa.encoders.monai_3d",
        "frepa.encoders.nnunet_3d",
        "frepa.encoders.slice_transfer",
        "frepa.encoders.pixels",
    ),
}
_SCHEME_MODULES = {
    "random": "frepa.encoders.registry",
    "timm": "frepa.encoders.timm_weights",
    "slices": "frepa.encoders.slice_transfer",
    "hf": "frepa.encoders.hf",
    "medsam": "frepa.encoders.published",
    "sam": "frepa.encoders.published",
    "frepa": "frepa.encoders.published",
    "pixels": "frepa.encoders.pixels",
}
_DEFAULT_IMAGE_CHANNELS = {2: 3, 3: 1}

Builder = Callable[..., Encoder]
_BUILDERS: dict[int, dict[str, Builder]] = {2: {}, 3: {}}
# "timm" in "timm:resnet50": the builder is given the whole name.
_FAMILIES: dict[int, dict[str, Builder]] = {2: {}, 3: {}}


def register(name: str, *, dims: int) -> Callable[[Builder], Builder]:
    """Register ``builder(name, *, image_channels, guide, **options) -> Encoder``.

    A name that ends in ``:`` registers a family: ``timm:`` builds every ``timm:ANYNAME``.
    """

    def add(builder: Builder) -> Builder:
        table = _FAMILIES if name.endswith(":") else _BUILDERS
        table[dims][name] = builder
        return builder

    return add


def encoder_names(dims: int) -> list[str]:
    """Registered names with this number of axes, sorted; ``pixels:``, families such as ``timm:`` are left out."""
    _import_all(dims)
    return sorted(name for name in _BUILDERS[dims] if ":" not in name)


def build_encoder(
    name: str, *, dims: int | None = None, image_channels: int | None = None, guide: str = "frangi", **options: Any
) -> Encoder:
    """Build an encoder with fresh random weights.

    Args:
        name: one of ``encoder_names(dims)``, or ``timm:NAME`` for any timm architecture.
        dims: 2 or 3; None takes the one the name belongs to.
        image_channels: channels of the image, without the guide; None is 3 in 2D and 1 in 3D.
        guide: what the guide channel will hold, "frangi", "frangi_dark", ..., or "none" (zeros).
        options: options of that architecture, for example ``output_stride=8`` (ConvNeXt) or ``patch_size=8`` (ViT).

    Raises:
        InputError: name, guide or option not known.
    """
    candidates = (2, 3) if dims is None else (dims,)
    for axes in candidates:
        builder = _find(name, axes)
        if builder is not None:
            channels = _DEFAULT_IMAGE_CHANNELS[axes] if image_channels is None else image_channels
            _check_options(name, builder, options)
            return _built(name, builder, options, image_channels=channels, guide=guide)
    other = [axes for axes in (2, 3) if axes not in candidates and _find(name, axes) is not None]
    if other:
        raise InputError(
            f"encoder {name} is a {other[0]}D one, and {dims}D images are asked for. "
            f"{dims}D encoders: {', '.join(encoder_names(candidates[0]))}."
        )
    known = [known for axes in candidates for known in encoder_names(axes)]
    raise InputError(f"encoder {name!r} is not known. {nearest(name, known)} Any timm name is taken as timm:NAME (2D).")


def _built(name: str, builder: Builder, options: dict[str, Any], **contract: Any) -> Encoder:
    try:
        return builder(name, **contract, **options)
    except InputError:
        raise
    # What libraries say of values they cannot take; without options it would be a defect of this program
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not options and ":" not in name:
            raise
        given = ", ".join(f"{key}={value}" for key, value in options.items()) or "its own options"
        reason = str(error).strip().partition("\n")[0][:200] or "the library it comes from refuses them"
        raise InputError(f"encoder {name} cannot be built with {shown(given)}: {shown(reason)}.") from None


def _import_all(dims: int) -> None:
    if dims not in _MODULES:
        raise InputError(f"encoders have 2 or 3 axes, found dims={dims}.")
    for module in _MODULES[dims]:
        importlib.import_module(module)


def _find(name: str, dims: int) -> Builder | None:
    _import_all(dims)
    family = name.split(":", 1)[0] + ":" if ":" in name else None
    return _BUILDERS[dims].get(name) or _FAMILIES[dims].get(family or "")


def _check_options(name: str, builder: Builder, options: dict[str, Any]) -> None:
    known = set(inspect.signature(builder).parameters) - {"name", "image_channels", "guide"}
    for option in options:
        if option not in known:
            raise InputError(f"encoder {name} has no option {option!r}. {nearest(option, known)}")


@dataclass(frozen=True)
class Scheme:
    """What ``KIND:REST,option=value`` means.

    load: ``(rest, options) -> Encoder``. absolute: ``rest`` with every path in it absolute. origin: what the encoder
    was pretrained by, "random" for none, None where nobody says.
    """

    load: Callable[[str, dict[str, Any]], Encoder]
    absolute: Callable[[str], str] = str
    origin: Callable[[str], str | None] = lambda rest: None


_SCHEMES: dict[str, Scheme] = {}


def register_scheme(kind: str, scheme: Scheme) -> None:
    """Make ``kind:REST`` an encoder wherever one is named."""
    _SCHEMES[kind] = scheme


def find_scheme(text: str) -> tuple[Scheme | None, str]:
    """The scheme a text begins with and what follows it; None and the whole text where it begins with none."""
    kind, colon, rest = text.partition(":")
    if colon and kind in _SCHEME_MODULES:
        importlib.import_module(_SCHEME_MODULES[kind])
    return (_SCHEMES[kind], rest) if colon and kind in _SCHEMES else (None, text)


def _load_random(name: str, options: dict[str, Any]) -> Encoder:
    """``random:NAME``: untrained weights, the same for the same ``seed`` (0 unless given)."""
    seed = options.pop("seed", 0)
    if not isinstance(seed, int):
        raise InputError(f"random:{name}: seed={seed}; give a whole number.")
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(name, **options)


register_scheme("random", Scheme(_load_random, origin=lambda rest: "random"))
