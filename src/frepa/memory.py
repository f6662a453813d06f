"""How much memory a training step will take, said before it is taken, and how much is in use.

A step that needs more memory than there is ends with the process killed and not a word. What a step keeps for its
backward pass is counted on a single sample instead, and multiplied.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from frepa.errors import InputError

_CGROUP = Path("/sys/fs/cgroup")
# Work space of convolutions and transforms, and what an allocator holds beyond what is asked for.
_OVERHEAD = 1.25
# Adam keeps two numbers per parameter beside the parameter and its gradient.
_COPIES = 4
# What is left to the rest of the machine, as a share of what is free.
_MARGIN = 0.95


def total_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that ``device`` has: of a GPU its own, else of the machine or of the container, whichever is less."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min(_meminfo("MemTotal"), *(limit for limit, _ in _groups()))


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that could be taken now without any other process losing some, as `total_memory` counts them."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_meminfo("MemAvailable"), *(max(0, limit - used) for limit, used in _groups()))


def memory_in_use(device: torch.device | str = "cpu") -> int:
    """Bytes held by this process on ``device``; on the CPU with those of its children, which read the images."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return sum(_resident(process) for process in (os.getpid(), *_children()))


@dataclass(frozen=True)
class StepMemory:
    """What a step takes, in bytes: ``fixed`` whatever the batch, ``per_sample`` for each image of it."""

    fixed: int
    per_sample: int

    def of(self, batch: int) -> int:
        """Bytes of a step on ``batch`` samples at once."""
        return self.fixed + int(_OVERHEAD * self.per_sample * batch)

    def largest_batch(self, room: int) -> int:
        """The most samples at once that ``room`` bytes allow; 0 where not even one fits."""
        return max(0, int((room - self.fixed) / max(1.0, _OVERHEAD * self.per_sample)))


def measure_step(module: nn.Module, forward: Callable[[], Tensor]) -> StepMemory:
    """What a training step of ``module`` takes, from ``forward()`` on ONE sample; nothing is changed.

    Args:
        module: its trained parameters count four times: value, gradient and the two averages of Adam.
        forward: computes the loss of one sample with gradient.
    """
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = forward()  # held until all is counted: a freed address could come back as another tensor's
    del loss
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in module.parameters() if not p.requires_grad)
    return StepMemory(_COPIES * trained + frozen, sum(kept.values()))


def check_room(
    step: StepMemory, *, batch: int, parts: int, device: torch.device | str, remedies: Iterable[str] = ()
) -> str:
    """Make sure that a step fits; gives a sentence that says what it takes and what there is.

    Args:
        step: as `measure_step` found it; the weights themselves are taken already, and are counted all the same.
        batch: samples per step on this device. parts: how many parts they are worked through in (``--accumulate``).
        device: where.
        remedies: options beside ``--batch-size`` and ``--accumulate`` that would help, such as ``--recompute``.

    Raises:
        InputError: it does not; the message names what would.
    """
    room = int(_MARGIN * free_memory(device))
    once = -(-batch // parts)
    needed = step.of(once)
    if needed <= room:
        return f"A step takes about {gigabytes(needed)}; {gigabytes(room)} are free."
    most = step.largest_batch(room)
    where = "the GPU's memory" if torch.device(device).type == "cuda" else "memory"
    advice = []
    if most:
        fitting = next(parts for parts in range(parts + 1, batch + 1) if batch % parts == 0 and batch // parts <= most)
        advice.append(f"--accumulate {fitting} (the same result in {fitting} parts)")
        advice.append(f"--batch-size {most}")
    advice += [*remedies, "a smaller --image-size", "a smaller encoder"]
    raise InputError(
        f"A step on {once} images at once needs about {gigabytes(needed)} of {where}, and {gigabytes(room)} are free. "
        f"What helps: {'; '.join(advice)}."
    )


@contextlib.contextmanager
def within_room(device: torch.device | str, remedies: str) -> Iterator[None]:
    """Refuse what is computed inside as soon as it keeps more for its backward pass than was free at the start.

    The operating system would end the process without a word. Nothing is computed twice, and results do not change.

    Args:
        device: where it is computed.
        remedies: options that would help, for the message.

    Raises:
        InputError: it does not fit.
    """
    room, kept = int(_MARGIN * free_memory(device)), dict[int, int]()
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        total += size - kept.get(place, 0)
        kept[place] = size
        if total > room:
            where = "the GPU's memory" if torch.device(device).type == "cuda" else "memory"
            found = f"A training step needs more than the {gigabytes(room)} of {where} that were free."
            raise InputError(f"{found} What helps: {remedies}.")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield


def check_batch(batch: int, numbers: int, device: torch.device | str) -> None:
    """Raise InputError where a batch cannot be held, whatever is made of it: ``numbers`` float32 for each sample."""
    room, needed = int(_MARGIN * free_memory(device)), 4 * batch * numbers
    if needed > room:
        raise InputError(
            f"--batch-size {batch}: what is put into the network needs {gigabytes(needed)} of memory by itself, and "
            f"{gigabytes(room)} are free. Give at most {max(1, room // (8 * numbers))}."
        )


def gigabytes(count: float) -> str:
    """Bytes for a person: ``3.4 GB``, ``120 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """A time for a person: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 days 4 h``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def _meminfo(name: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no Linux: what the machine has


def _groups() -> list[tuple[int, int]]:
    """Limit and use of the control group this process is in, where a container or a scheduler set one."""
    found = [(2**63 - 1, 0)]
    for limit, used, cache in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most = (_CGROUP / limit).read_text().strip()
            if most != "max":
                # Files that the system keeps in memory are given up for whoever needs it
                stat = dict(line.split() for line in (_CGROUP / cache).read_text().splitlines())
                kept = int(stat.get("inactive_file", 0))
                found.append((int(most), max(0, int((_CGROUP / used).read_text()) - kept)))
        except (OSError, ValueError):
            continue
    return found


def _children() -> list[int]:
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _resident(process: int) -> int:
    """Bytes of a process that it does not share with others; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
