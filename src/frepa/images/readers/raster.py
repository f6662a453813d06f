"""PNG, JPEG, BMP, GIF, PGM and PPM through Pillow.

Grey stays grey, colour becomes RGB (palette, CMYK, YCbCr and Lab included), 1-bit becomes 0/255, alpha is laid over
black, EXIF orientation is applied, 16 bits stay 16 bits. Animations are refused unless a frame is named
(``file.gif#frame=3``, or ``file.gif#3``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

from frepa.images.guards import check_memory, reported
from frepa.images.readers.pixels import channels_first, check_size, checked, drop_alpha, orient
from frepa.images.readers.plain_png import plain_png
from frepa.images.scan import Header, Scan, Trouble, UnreadableScan

_ORIENTATION = 0x0112
_PILLOW_LIMIT = threading.Lock()
# Pillow knows more, some of which run other programs (EPS) or name other files
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
_PLUGINS = (Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin)  # their import makes them known
# One channel as NumPy already has it; LA and the colour modes are converted first
_GREY_MODES = {"L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F"}


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size and channels from the header alone."""
    with _opened(path, member, max_pixels) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        return Header(1 if image.mode in _GREY_MODES or image.mode in ("1", "LA", "La") else 3, (height, width))


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """One image, ``(1 | 3, H, W)``, uint8 or uint16 (int32 and float32 where the file holds them)."""
    if member is None and path.name[-4:].lower() == ".png":
        plain = plain_png(path, max_pixels)
        if plain is not None:
            return Scan(channels_first(plain[..., None] if plain.ndim == 2 else plain))
    with _opened(path, member, max_pixels) as image:
        array = _deep_png(path) if _is_deep_png(image) else _pixels(image)
        array = orient(array, image.getexif().get(_ORIENTATION, 1))
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[-1] in (2, 4):
        array = drop_alpha(array)
    return Scan(checked(path, channels_first(array)))


@contextmanager
def _opened(path: Path, member: str | None, max_pixels: int) -> Iterator[Image.Image]:
    """The image, its size checked and its frame chosen; whatever Pillow raises becomes `UnreadableScan`."""
    with reported(path, lambda error: _told(error, path)):
        # Pillow's own limit is process-wide and fixed; ours replaces it for the moment of opening only
        with _PILLOW_LIMIT:
            theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path, formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = theirs
        with image:
            check_size(path, image.size, max_pixels)
            check_memory(path, image.width * image.height * _bytes_per_pixel(image))
            _choose_frame(path, image, member)
            yield image


def _told(error: Exception, path: Path) -> tuple[str, Trouble]:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of the kind its name says, or a damaged header", "damaged"
    return f"damaged or truncated ({_short(error, path)})", "truncated"


def _choose_frame(path: Path, image: Image.Image, member: str | None) -> None:
    # The second frame of an MPO photograph is a preview, not another picture
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if member is None:
        if frames > 1:
            raise UnreadableScan(
                str(path),
                f"holds {frames} frames; name the ones to use in a manifest, e.g. {path.name}#frame=0",
                kind="several arrays",
            )
        return
    number = member.removeprefix("frame=")
    if not number.isdecimal() or int(number) >= frames:
        raise UnreadableScan(str(path), f"has no frame {member!r}; it holds {frames}, numbered from 0")
    if int(number):
        image.seek(int(number))


def _pixels(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode == "P":
        transparent = "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    elif mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif mode == "La":
        image = image.convert("LA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in _GREY_MODES and mode not in ("RGB", "RGBA", "LA"):
        image = image.convert("RGB")
    elif mode in ("L", "RGB") and isinstance(image.info.get("transparency"), (int, tuple)):
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    return np.asarray(image)


def _bytes_per_pixel(image: Image.Image) -> int:
    """As decoded: palettes become RGBA, 16-bit colour stays 16-bit colour."""
    if _is_deep_png(image):
        return 8
    return {"L": 1, "1": 1, "I": 4, "F": 4, "LA": 2, "La": 2, "RGB": 3}.get(
        image.mode, 2 if image.mode[:1] == "I" else 4
    )


def _is_deep_png(image: Image.Image) -> bool:
    """16-bit PNG with colour or alpha: Pillow would cut it to 8 bits without a word."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA", "LA"):
        return False
    tile = next(iter(getattr(image, "tile", ())), None)  # how Pillow would unpack it
    return tile is not None and str(tile[3]).endswith(";16B")


def _deep_png(path: Path) -> np.ndarray:
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


def _short(error: Exception, path: Path) -> str:
    """The library's words without the folder, which may name people."""
    text = " ".join(str(error).replace(str(path), path.name).split())
    return text[:160] or type(error).__name__
