"""Time and memory of a step of every method with every encoder that takes it, side by side.

    python benchmarks/methods.py --out benchmarks/results/methods_cpu.json

The methods take turns on the same images, so that what else the machine does meets all of them. Prints JSON: for each
encoder and method the least processor seconds of a whole step (augmentation, guide, corruption, forward, backward,
optimizer) and of augmentation and guide alone, the step over SimMIM's with the same encoder, what a step keeps for its
backward pass per image, and its weights with their gradients and averages; and the machine. Then the same as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder, encoder_names
from frepa.errors import InputError
from frepa.memory import measure_step
from frepa.optimizers import adam
from frepa.pretraining.methods.contract import Batch, Method, Setting
from frepa.pretraining.methods.reconstructing import Reconstructing
from frepa.pretraining.methods.registry import build_method, find_method

#: Name in the table: method and its options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "frepa": ("frepa", {"consistency_weight": 0.5}),
    "frepa, clean teacher": ("frepa", {"teacher": True, "consistency_weight": 0.5}),
    "frepa, one view": ("frepa", {"consistency_weight": 0.0}),
    "mae": ("mae", {}),
    "simmim": ("simmim", {}),
    "mfm": ("mfm", {}),
    "clip": ("clip", {}),
}
#: Encoder, side of the images, images per step.
CASES = (
    ("vit_tiny", 224, 4),
    ("swin_tiny", 128, 4),
    ("convnext_atto,output_stride=16", 128, 4),
    ("vit3d_small,patch_size=8", 48, 1),
    ("mednext_tiny", 32, 1),
)


@dataclass
class Runner:
    """A method with its optimizer, and the seconds of its steps."""

    method: Method
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    preparing: list[float] = field(default_factory=list)

    @property
    def least_preparing(self) -> float | None:
        """Of augmentation and guide; None where the method does not show it."""
        return round(min(self.preparing[1:]), 4) if self.preparing else None

    def step(self, batch: Batch, number: int) -> None:
        start = time.process_time()
        if isinstance(self.method, Reconstructing):
            self.method.clean(batch)
            self.preparing.append(time.process_time() - start)
            start = time.process_time()
        loss = self.method(batch._replace(step=number)).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step(number, 1e-6)
        self.seconds.append(time.process_time() - start)


def measure(
    spec: str, size: int, count: int, *, guide: str, repeats: int, titles: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each method that takes the encoder."""
    name, options = split_options(spec)
    dims = 3 if name in encoder_names(3) else 2
    shape = (size,) * dims
    images = torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(0))
    known = {"labels": torch.arange(count) % 2}
    batch = Batch(images, torch.ones(count, dtype=torch.bool), list(range(count)), **known)
    runners, memory = {}, {}
    for title in titles:
        method, asked = METHODS[title]
        torch.manual_seed(0)
        own = {"image_size": size} if dims == 3 and name.startswith("vit") else {}
        encoder = build_encoder(name, dims=dims, guide=guide, **own, **options)
        setting = Setting(encoder, 1, size, "crop", 0, classes=("benign", "malignant"))
        try:
            built = build_method(method, find_method(method).options(**asked), setting).train()
        except InputError:  # mae with an encoder that cannot leave patches out
            continue
        one = batch._replace(images=images[:1], grey=batch.grey[:1], positions=[0], labels=known["labels"][:1])
        memory[title] = measure_step(built, lambda built=built, one=one: built(one).loss)
        runners[title] = Runner(built, adam([p for p in built.parameters() if p.requires_grad], 1e-6))
    for number in range(repeats + 1):
        for runner in runners.values():
            runner.step(batch, number)
    least = {title: min(runner.seconds[1:]) for title, runner in runners.items()}
    return [
        {
            "encoder": spec,
            "size": size,
            "batch": count,
            "method": title,
            "step_seconds": round(seconds, 4),
            "preparing_seconds": runners[title].least_preparing,
            "over_simmim": round(seconds / least["simmim"], 3),
            "kept_per_image_mb": round(memory[title].per_sample / 1e6, 1),
            "weights_mb": round(memory[title].fixed / 1e6, 1),
        }
        for title, seconds in least.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    titles = ("Encoder", "Method", "Step, processor s", "Augmentation, guide", "Over SimMIM", "Kept, MB", "Weights, MB")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        side = str(row["size"])
        dims = 3 if split_options(row["encoder"])[0] in encoder_names(3) else 2
        preparing = "-" if row["preparing_seconds"] is None else f"{row['preparing_seconds']:.3f}"
        cells = [
            f"`{row['encoder']}`, {row['batch']} of {' x '.join([side] * dims)}",
            row["method"],
            f"{row['step_seconds']:.3f}",
            preparing,
            f"{row['over_simmim']:.2f}",
            f"{row['kept_per_image_mb']:.0f}",
            f"{row['weights_mb']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guide", default="frangi")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", help="ENCODER:SIZE:BATCH instead of the usual ones")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="SimMIM among them")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: Any = CASES
    if options.cases:
        split = [case.rsplit(":", 2) for case in options.cases]
        cases = [(name, int(size), int(count)) for name, size, count in split]
    load = round(os.getloadavg()[0], 1)
    rows = []
    for name, size, count in cases:
        rows += measure(name, size, count, guide=options.guide, repeats=options.repeats, titles=options.methods)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    asked = {"guide": options.guide, "repeats": options.repeats}
    text = json.dumps({"options": asked, "machine": machine, "rows": rows}, indent=2)
    print(text)
    print(table(rows))
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
