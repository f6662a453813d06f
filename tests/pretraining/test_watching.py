"""The encoder under watch: when it is looked at, which state is kept as the best, and when a run ends early."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import frepa
from frepa.analysis.health import Health
from frepa.errors import InputError
from frepa.images.angiograms import angiogram
from frepa.pretraining.journal import Journal
from frepa.pretraining.options import Watching
from frepa.pretraining.validation import Validation
from frepa.pretraining.watching import Instruments, Watch, open_looks

TINY = {"encoder": "timm:test_convnext", "image_size": 32, "batch_size": 4, "num_workers": 0, "quiet": True,
        "val_images": 3}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch) -> None:
    """They take longer than the training."""
    monkeypatch.setattr(Validation, "_draw", lambda *args: None)


class Scripted:
    """A look that gives what it was told to."""

    names = ("probe",)

    def __init__(self, *values: float, cost: float = 0.0) -> None:
        self.values, self.cost = list(values), cost

    def __call__(self, encoder) -> dict[str, float]:
        return {"probe": self.values.pop(0)}


class Said:
    """Stands for a journal."""

    def __init__(self) -> None:
        self.rows, self.told = [], []

    def looked(self, row, found, seconds) -> None:
        self.rows.append(row)

    def tell(self, sentence) -> None:
        self.told.append(sentence)


def _watch(look, *, batch_size=8, there=True, **options) -> tuple[Watch, Said, list[int]]:
    said, saved = Said(), []
    fabric = SimpleNamespace(autocast=lambda: torch.no_grad())
    watch = Watch(
        [look], Watching(best_by="probe", **options), fabric, said, batch_size=batch_size,
        save_best=lambda method, step, found: saved.append(step), best_is_there=lambda: there,
    )  # fmt: skip
    return watch, said, saved


def _method() -> torch.nn.Module:
    method = torch.nn.Linear(1, 1)
    method.encoder = torch.nn.Linear(1, 1)
    return method


def test_looks_take_a_hundredth_of_the_passes_and_are_no_more_often_than_every_200_steps():
    dear, _, _ = _watch(Scripted(cost=240.0), batch_size=8)
    ((_, every),) = dear.looks
    assert every == 2000
    assert 0.01 * every * 8 * 1.5 >= 240  # passes of looks against those of training
    assert [step for step in range(0, 5001, 250) if dear.due(step, 5000)] == [0, 2000, 4000, 5000]
    ((_, every),) = _watch(Scripted(cost=1.0))[0].looks
    assert every == 200
    ((_, every),) = _watch(Scripted(cost=1e9), watch_every=7)[0].looks
    assert every == 7


def test_the_best_is_kept_and_patience_counts_looks_without_a_better_one():
    watch, said, saved = _watch(Scripted(0.2, 0.5, 0.5, 0.4, 0.6), keep="best", patience=3, watch_every=1)
    method = _method().train()
    for step in range(4):
        watch(method, 0, step, 100)
    assert saved == [0, 1]  # of equal ones the first
    assert (watch.best, watch.best_step, watch.since, watch.enough) == (0.5, 1, 2, False)
    assert method.training
    state = watch.state_dict()
    later, said, saved = _watch(Scripted(0.45, 0.6), keep="best", patience=3, watch_every=1)
    later.load_state_dict(state)
    later(method, 0, 4, 100)
    assert later.enough
    assert saved == []
    assert "has not risen above 0.5, as it was after step 1, in 3 looks" in said.told[0]
    gone, said, saved = _watch(Scripted(0.1), keep="best", watch_every=1, there=False)
    gone.load_state_dict(state)
    gone(method, 0, 4, 100)
    assert saved == [4]
    assert "is gone" in said.told[0]


def test_what_cannot_decide_is_said():
    instruments = Instruments(Health, lambda *args, **how: Scripted())
    held = torch.rand(3, 1, 16, 16)
    for options, images, message in (
        (Watching(keep="best", best_by="probe"), held, "there is no probe"),
        (Watching(patience=2, best_by="high"), held[:1], "--val-images 2"),
        (Watching(patience=2, best_by="high"), held[:0], "no held-out images"),
        (Watching(watch_every=0, probe="set"), held, "--watch-every 0"),
        (Watching(watch_every=0, keep="best", best_by="rank"), held, "nothing is looked at with --watch-every 0"),
    ):
        with pytest.raises(InputError, match=message):
            open_looks(options, instruments, images, 2)
    assert len(open_looks(Watching(probe="set"), instruments, held, 2)) == 2
    assert open_looks(Watching(), instruments, held[:0], 2) == []


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Images without labels; others with masks."""
    root = tmp_path_factory.mktemp("watched")
    for kind in ("images", "vessels/images", "vessels/masks"):
        (root / kind).mkdir(parents=True)
    for seed in range(8):
        image, mask = angiogram(48, seed)
        Image.fromarray((image * 255).astype(np.uint8)).save(root / "images" / f"{seed}.png")
        Image.fromarray((image * 255).astype(np.uint8)).save(root / "vessels/images" / f"{seed}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "vessels/masks" / f"{seed}.png")
    return root


def _looks(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if any(name.startswith("health_") for name in row)]


def test_a_run_tells_what_its_encoder_keeps_and_keeps_the_best(sources, tmp_path, capsys):
    run = frepa.pretrain(
        str(sources / "images"), out=str(tmp_path / "run"), max_steps=6, watch_every=2, keep="best", ema_decay=0.5,
        probe=str(sources / "vessels"), best_by="rank", checkpoint_every=2, **TINY,
    )  # fmt: skip
    looks = _looks(run)
    assert [row["step"] for row in looks] == [0, 2, 4, 6]
    names = {"rank", "variance", "low", "medium", "high", "probe"}
    assert all(set(row) == {"step", "epoch", *(f"health_{name}" for name in names)} for row in looks)
    best = max(looks, key=lambda row: row["health_rank"])
    extra = json.loads((run / "best" / "encoder.json").read_text())["extra"]
    assert extra["best_by"] == {"rank": best["health_rank"]}
    assert extra["pretraining"]["steps"] == best["step"]
    # What the last look was of is what the run gives: the average of the weights.
    from frepa.datasets.opening import open_source
    from frepa.images.loading import load_images
    from frepa.pretraining.training_part import training_part

    source = open_source(str(sources / "images"), dims=2)
    held = training_part(source, val_images=3, seed=0).held_out.tolist()
    again = Health(load_images(source, held, size=32, mode="resize")["image"])
    assert again(frepa.load_encoder(run))["rank"] == pytest.approx(looks[-1]["health_rank"], rel=1e-5)
    assert again(frepa.load_encoder(run / "best"))["rank"] == pytest.approx(best["health_rank"], rel=1e-5)
    assert "What the encoder keeps" in (run / "report.html").read_text()
    assert "% of the time" in capsys.readouterr().err
    assert all("looking_seconds" in row or "images_per_second" in row for row in map(
        json.loads, (run / "speed.jsonl").read_text().splitlines()))  # fmt: skip


def test_a_run_that_is_broken_off_goes_on_with_its_best_and_its_patience(sources, tmp_path, monkeypatch):
    """And ends where the one ends that was left alone, at the end of its patience."""
    options = {"max_steps": 40, "watch_every": 1, "keep": "best", "best_by": "variance", "patience": 4,
               "checkpoint_every": 2, "lr": 1e-3, **TINY}  # fmt: skip
    whole = frepa.pretrain(str(sources / "images"), out=str(tmp_path / "whole"), **options)
    looks = _looks(whole)
    values = [row["health_variance"] for row in looks]
    best = int(np.argmax(values))
    assert looks[-1]["step"] == looks[best]["step"] + 4 < 40
    assert json.loads((whole / "encoder.json").read_text())["extra"]["pretraining"]["steps"] == looks[-1]["step"]
    step = Journal.step
    for number in sorted({best + 1, best + 3}):

        def broken(self, at, *args, number=number, **kwargs):
            if at == number:
                raise KeyboardInterrupt
            step(self, at, *args, **kwargs)

        monkeypatch.setattr(Journal, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            frepa.pretrain(str(sources / "images"), out=str(tmp_path / "run"), resume=True, **options)
    monkeypatch.setattr(Journal, "step", step)
    run = frepa.pretrain(str(sources / "images"), out=str(tmp_path / "run"), resume=True, **options)
    for name in ("encoder.safetensors", "metrics.jsonl", "best/encoder.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    # A run that has ended is not trained on
    before = load_file(run / "encoder.safetensors")
    frepa.pretrain(str(sources / "images"), out=str(tmp_path / "run"), resume=True, **options)
    assert all(torch.equal(value, before[name]) for name, value in load_file(run / "encoder.safetensors").items())
    assert _looks(run) == looks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"watch_every": -1}, "watch-every -1"),
        ({"patience": -1}, "patience -1"),
        ({"keep": "best", "best_by": "probe"}, "there is no probe"),
        ({"probe": "nowhere"}, "nowhere.*does not exist"),
        ({"keep": "best", "val_images": 0}, "no held-out images"),
    ],
)
def test_wrong_options_leave_nothing(sources, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        frepa.pretrain(str(sources / "images"), out=str(tmp_path / "run"), max_steps=2, **(TINY | change))
    assert not (tmp_path / "run").exists()
