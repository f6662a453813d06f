"""What heads on one encoder and set share: computed once, and to the last digit what a run on its own computes."""

from __future__ import annotations

import csv
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import tiny_encoders  # noqa: F401 (registers them)
from frepa.comparison import cells
from frepa.downstream.sharing import Shared, shared, shared_maps, sharing
from frepa.encoders.contract import Encoder
from frepa.verbs import _comparing
from frepa.verbs.compare import compare
from tiny_runs import class_folders, masked_set

TINY = "random:tiny_for_tests,seed=3"
SLICES = "slices:random:tiny_for_tests,rounds=1,width=8,heads=2,chunk=3"
STEPS = {"max_steps": 2, "batch_size": 2}


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Images that pass a 2D encoder, by batch."""
    seen: list[int] = []
    forward = Encoder.forward

    def counted(self, x):
        if self.dims == 2:
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Encoder, "forward", counted)
    # Pages are slow, and another test's
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)
    monkeypatch.setattr("frepa.downstream.run.RunPage", lambda *given: mock.Mock())
    for task in ("segmentation", "classification", "detection"):
        monkeypatch.setattr(f"frepa.downstream.{task}.task.fill_page", lambda *given, **options: None)
    return seen


def volumes(root: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        mask = np.zeros((4, 12, 14), np.uint8)
        mask[1:-1, 3 : 8 + i % 2, 4:10] = 1
        noise = np.random.default_rng(i).normal(0, 5, mask.shape)
        np.save(root / "imagesTr" / f"v{i}.npy", (100.0 * mask + noise).astype(np.float32))
        np.save(root / "labelsTr" / f"v{i}.npy", mask)
    return root


def source(root: Path, verb: str, encoder: str) -> Path:
    if encoder == SLICES:
        return volumes(root)
    return class_folders(root) if verb == "classify" else masked_set(root, count=8)


@pytest.mark.parametrize(
    ("verb", "encoder", "options"),
    [
        ("segment", TINY, {"crop_size": 16}),
        ("classify", TINY, {"image_size": 24}),
        ("classify", TINY, {"image_size": 24, "augment": True, "heads": ["trained"]}),
        ("detect", TINY, {"crop_size": 16}),
        ("segment", SLICES, {"crop_size": 8}),
    ],
    ids=["segment", "classify", "augmented", "detect", "slices"],
)
def test_cells_are_what_runs_on_their_own_are(tmp_path, encoded, verb, encoder, options):
    """Every head byte for byte, and every score; the later heads show the encoder less."""
    task = {verb: str(source(tmp_path / "set", verb, encoder)), **STEPS, **options}
    heads = task.pop("heads", ["linear", "trained"])
    study = {"encoders": {"one": encoder}, "tasks": {"it": task}, "heads": heads, "seeds": 2, "resamples": 100}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    out = Path(compare(str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), quiet=True, threads=1))
    together = sum(encoded)
    assert cells._SHARED == {}
    encoded.clear()
    made = sorted(path.parent for path in out.glob("cells/*/results.json"))
    assert len(made) == (3 if verb != "detect" and "linear" in heads else 2)
    for cell in made:
        told = yaml.safe_load((cell / "config.yaml").read_text())
        told |= {"out": str(tmp_path / "alone" / cell.name), "quiet": True}
        alone = Path(_comparing.VERBS[verb](told.pop("source"), **told))
        for name in ("cases.csv", "head.safetensors"):
            assert (alone / name).read_bytes() == (cell / name).read_bytes(), (cell.name, name)
    assert together < sum(encoded)
    if verb == "classify" and "augment" not in options:
        assert together == len(list((tmp_path / "set").rglob("*.png")))  # each image once


def test_a_cell_alone_keeps_nothing(tmp_path, encoded, monkeypatch):
    rooms: list[int] = []
    monkeypatch.setattr(cells, "Shared", lambda limit: rooms.append(limit) or Shared(limit))
    for heads in ("linear", ["linear", "trained"]):
        task = {"classify": str(tmp_path / "set"), "image_size": 24, **STEPS}
        if not (tmp_path / "set").exists():
            class_folders(tmp_path / "set")
        study = {"encoders": {"one": TINY}, "tasks": {"it": task}, "heads": heads, "resamples": 100}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        compare(str(tmp_path / "study.yaml"), out=str(tmp_path / str(heads)), quiet=True, threads=1)
        assert len(rooms) == (heads != "linear")
    assert rooms[0] > 2**20


def test_what_is_given_out_is_nobody_elses_and_memory_has_an_end():
    with sharing(Shared(100)):
        first = shared(lambda: ("a",), lambda: [np.zeros(4)], lambda made: 32)
        first[0][:] = 9
        second = shared(lambda: ("a",), lambda: [np.ones(4)], lambda made: 32)
        second[0][:] = 8
        assert shared(lambda: ("a",), lambda: [np.ones(4)], lambda made: 32)[0].tolist() == [0, 0, 0, 0]
        for _ in range(2):  # 96 bytes more do not fit
            assert shared(lambda: ("b",), lambda: "made", lambda made: 96) == "made"
        with sharing(None):
            assert shared(lambda: ("a",), lambda: "anew", lambda made: 0) == "anew"
    assert shared(lambda: ("a",), lambda: "anew", lambda made: 0) == "anew"


def test_maps_are_told_by_values_extent_and_layout():
    made: list[torch.Tensor] = []

    def of(x: torch.Tensor, *words: str) -> torch.Tensor:
        return shared_maps(words, [x], lambda: [made.append(x) or x + 1])[0]

    x = torch.rand(2, 3, 4, 4)
    with sharing(Shared(10**6)):
        for same in (x, x.clone()):
            assert torch.equal(of(same), x + 1)
        assert len(made) == 1
        for number, other in enumerate((x + 1e-7, x.view(2, 3, 16, 1), x.to(memory_format=torch.channels_last)), 2):
            assert torch.equal(of(other), other + 1)
            assert len(made) == number
        of(x, "bf16")
        assert len(made) == 5


def test_scores_of_a_study_are_in_its_table(tmp_path, encoded):
    """Sharing is left where the data are others: two sets, one encoder."""
    tasks = {name: {"classify": str(class_folders(tmp_path / name, count=n)), "image_size": 24, **STEPS}
             for name, n in (("a", 8), ("b", 10))}  # fmt: skip
    study = {"encoders": {"one": TINY}, "tasks": tasks, "heads": ["linear", "trained"], "resamples": 100}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    out = Path(compare(str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), quiet=True, threads=1))
    assert sum(encoded) == 16 + 20
    with open(out / "cells.csv", encoding="utf-8", newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"done"}
