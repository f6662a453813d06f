"""The device that trains: its name, memory, number formats, repeatable convolutions."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version

import torch

from frepa.errors import InputError, nearest
from frepa.processors import processors

_VERSIONS = ("frepa", "torch", "timm", "monai", "numpy")
# Parameters of glibc's mallopt, from malloc.h, and what they are where nobody has said otherwise.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _DEFAULT_TRIM, _DEFAULT_MMAPS = 2**31 - 1, 128 * 1024, 65536


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """In words, for results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "CPU")


def training_devices(asked: str) -> list[int] | int | str:
    """``--devices`` as Fabric takes it: "auto", a number, or the numbers of GPUs.

    Raises:
        InputError: anything else, or more than the machine has. Nothing is started before that is known.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "auto" if gpus else 1  # without a GPU one process with all threads beats several
    parts = asked.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f'--devices {asked}: expected "auto", a number from 1 on, or numbers of GPUs such as 0,3.')
    numbers = [int(part) for part in parts]
    if len(parts) > 1:
        if not gpus:
            raise InputError(
                f"--devices {asked}: these are numbers of GPUs, and no GPU is found here. Give --devices "
                f"{len(parts)} for as many processes on the CPU, or leave it out."
            )
        if max(numbers) >= gpus or len(set(numbers)) < len(numbers):
            raise InputError(f"--devices {asked}: expected different numbers from 0 to {gpus - 1}, one per GPU.")
        return numbers
    most, what = (gpus, "GPUs are found here") if gpus else (max(2, processors()), "processes have a processor here")
    if not 1 <= numbers[0] <= most:
        raise InputError(f'--devices {asked}: expected "auto" or a number from 1 to {most}: so many {what}.')
    return numbers[0]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 of its own, so that it gains time by it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return False


def training_precision(asked: str, device: torch.device) -> str:
    """``--precision`` of pretraining, resolved: fp32, bf16 or fp16.

    ``auto`` is bf16 on a GPU that has instructions for it, else fp32: on a CPU the same command gives the same encoder
    whatever the processor, and bf16 is there for the asking. Weights, optimizer and objective stay in float32 either
    way. Raises InputError for fp16 on a CPU, which PyTorch would silently make bf16.
    """
    if asked == "auto":
        return "bf16" if device.type == "cuda" and has_fast_bf16(device) else "fp32"
    known = ("fp32", "bf16", "fp16")
    if asked not in known:
        raise InputError(f"--precision {asked}: not known. {nearest(asked, ['auto', *known])}")
    if asked == "fp16" and device.type == "cpu":
        raise InputError(
            "--precision fp16 needs a GPU: training on a CPU has no fp16. Use --precision "
            + ("bf16, which this CPU has instructions for." if has_fast_bf16(device) else "fp32.")
        )
    return asked


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What ``--precision`` of a head means on this device; None is float32.

    ``auto`` is float32 on every CPU: what is read from frozen features is not to depend on the processor.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and has_fast_bf16(device) else "fp32"
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


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Steps that use again the memory that the step before let go, until it is given back at the end. Within it only.

    glibc takes every large tensor afresh from the system and gives it back when it is let go, and the system clears it
    page by page each time: up to two fifths of a step on a CPU where tensors are large, as those of volumes are
    (docs/results/speed.md). What is kept grows over the first steps, then stays. Where the C library is another one, or
    somebody has set its MALLOC_ variables, nothing is done. Results do not change.
    """
    mallopt, trim = (getattr(_c_library(), name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or trim is None or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, _DEFAULT_MMAPS)
        mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        trim(0)


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None


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
