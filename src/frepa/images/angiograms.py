"""Procedural angiograms with exact vessel masks: free, private and endless images for the demo and for tests.

A vessel tree grows by a biased random walk that branches and thins; it is drawn several times finer than the image, so
that the mask is the true coverage of each pixel and not a threshold of the grey values.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

_FINER = 4  # the drawing has 4 x 4 points per pixel


def angiogram(size: int, seed: int, *, trees: int = 5, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """One grey image of dark vessels on an uneven bright background, and its mask.

    Args:
        size: height and width in pixels, at least 32.
        seed: the same seed gives the same image on every machine with the same NumPy generator.
        trees: vessel trees, each entering from the rim.
        noise: standard deviation of the detector noise, in units of the intensity range.

    Returns:
        image ``(size, size)`` float32 in [0, 1]; mask ``(size, size)`` bool, true where a vessel covers at least half
        of the pixel. Vessel radii run from 0.4 to about 3 % of ``size`` / 2 pixels.
    """
    if size < 32:
        raise ValueError(f"size {size}: expected at least 32 pixels")
    generator = np.random.default_rng(seed)
    canvas = Image.new("L", (size * _FINER, size * _FINER), 0)
    pen = ImageDraw.Draw(canvas)
    for _ in range(trees):
        angle = generator.uniform(0, 2 * math.pi)
        rim = 0.5 + 0.5 * np.array([math.cos(angle), math.sin(angle)])
        inward = angle + math.pi + generator.normal(0, 0.4)
        _grow(pen, rim * size, inward, generator.uniform(0.009, 0.016) * size, size, generator)
    coverage = np.asarray(canvas, np.float32).reshape(size, _FINER, size, _FINER).mean((1, 3)) / 255.0

    light = gaussian_filter(generator.normal(size=(size, size)), size / 6, mode="reflect")
    light = 0.65 + 0.12 * light / (np.abs(light).max() + 1e-9)
    texture = gaussian_filter(generator.normal(size=(size, size)), 1.5)
    texture *= 0.02 / texture.std()
    contrast = 0.28 + 0.05 * gaussian_filter(generator.normal(size=(size, size)), size / 20) * size / 20
    image = light + texture - np.clip(contrast, 0.12, 0.4) * gaussian_filter(coverage, 0.6)
    image += generator.normal(0, noise, (size, size))
    return np.clip(image, 0, 1).astype(np.float32), coverage >= 0.5


def _grow(
    pen: ImageDraw.ImageDraw,
    start: np.ndarray,
    heading: float,
    radius: float,
    size: int,
    generator: np.random.Generator,
) -> None:
    """Draw a vessel and its branches (an explicit stack: deep trees do not meet Python's recursion limit)."""
    stack = [(start, heading, radius)]
    while stack:
        point, heading, radius = stack.pop()
        stride = max(1.0, size / 100)
        for _ in range(int(generator.uniform(12, 45))):
            heading += generator.normal(0, 0.16)
            following = point + stride * np.array([math.cos(heading), math.sin(heading)])
            ends = [tuple(float(v) * _FINER for v in p) for p in (point, following)]
            width = 2 * radius * _FINER
            pen.line(ends, fill=255, width=max(1, round(width)))
            x, y = ends[1]  # a disc at each joint: wide lines of PIL leave gaps where they bend
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
            point = following
            radius *= 0.997
            if not (0 <= point[0] < size and 0 <= point[1] < size):
                break
        else:
            # Murray's law with unequal daughters: r^3 = a^3 + b^3.
            share = generator.uniform(0.3, 0.7)
            for part, side in ((share, 1), (1 - share, -1)):
                daughter = radius * part ** (1 / 3)
                if daughter > 0.4:
                    stack.append((point, heading + side * generator.uniform(0.25, 0.7), daughter * 0.92))
