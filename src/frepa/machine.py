"""The device a head trains on: its name, memory, number formats, and repeatable convolutions."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import torch

from frepa.errors import InputError, nearest

_VERSIONS = ("frepa", "torch", "timm", "monai", "numpy")


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """In words, for results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "CPU")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What ``--precision`` means on this device; None is float32."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    known = {"fp32": None, "bf16": torch.bfloat16}
    if precision not in known:
        raise InputError(f"--precision {precision}: not known. {nearest(precision, ['auto', *known])}")
    return known[precision]


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Convolutions whose backward pass gives the same bits in every run."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def versions() -> dict[str, str]:
    """Of this program, of what its results depend on, and of Python."""
    return {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()}


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return 8 * 2**30
