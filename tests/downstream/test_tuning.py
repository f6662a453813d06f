"""``--train blocks=N | all``: what of an encoder learns with a head, at which rates, and where it is kept."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from frepa.downstream.fitting import FitState
from frepa.downstream.head_files import PREFIX
from frepa.downstream.resuming import HeadState
from frepa.downstream.trained import load_head
from frepa.encoders.contract import Encoder
from frepa.encoders.files import load_encoder
from frepa.encoders.layers import layers_of
from frepa.encoders.registry import register
from frepa.errors import InputError, Stopped
from frepa.verbs.classify import classify
from frepa.verbs.evaluate import evaluate
from frepa.verbs.predict import predict
from tiny_encoders import TinyEncoder
from tiny_runs import ENCODER, classifying, detecting, segmenting

CONVNEXT = "random:timm:test_convnext"
TASKS = {
    "segment": (segmenting, {"size": (40, 48), "head": "conv", "features": "last"}),
    "classify": (classifying, {"image_size": 32}),
    "detect": (detecting, {"max_steps": 3}),
}
QUIET = {"quiet": True, "num_workers": 0}


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def keep_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the last validation are kept, whatever it said: what was trained can be looked at."""
    validated = FitState.validated

    def always(self: FitState, found) -> None:
        self.best = None
        validated(self, found._replace(rank=(1.0,)))

    monkeypatch.setattr(FitState, "validated", always)


@pytest.fixture
def last_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_last(monkeypatch)


@pytest.mark.parametrize("verb", TASKS)
def test_the_named_blocks_change_and_nothing_else(verb, tmp_path, last_kept) -> None:
    make, options = TASKS[verb]
    run = make(tmp_path, encoder=CONVNEXT, train="blocks=1", **options)
    before = load_encoder(CONVNEXT)
    wanted = set(layers_of(before)[-1])
    assert {name.split(".")[2] for name in wanted if ".stages." in name} == {"3"}  # its last stage, of four
    kept = load_file(run / "head.safetensors")
    assert {name.removeprefix(PREFIX) for name in kept if name.startswith(PREFIX)} == wanted
    after = load_head(run).models[0].encoder
    old, new = before.state_dict(), after.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == wanted
    count = sum(old[name].numel() for name in wanted)
    results = json.loads((run / "results.json").read_text())
    assert results["train"] == "blocks=1"
    assert results["tuned"] == {
        "train": "blocks=1", "layers": 1, "parameters": count, "layer_decay": 0.75,
        "encoder_lr": pytest.approx(0.1 * {"detect": 1e-2, "segment": 2e-3}.get(verb, 1e-3)),
    }  # fmt: skip
    assert results["encoder"]["trained"] == count
    assert "encoder fine-tuned (blocks=1)" in (run / "report.html").read_text()


def test_a_frozen_encoder_is_said_to_be_frozen(tmp_path) -> None:
    run = classifying(tmp_path)
    results = json.loads((run / "results.json").read_text())
    assert (results["train"], "tuned" in results) == ("head", False)
    assert "frozen encoder" in (run / "report.html").read_text()
    assert not any(name.startswith(PREFIX) for name in load_file(run / "head.safetensors"))


def test_rates_fall_from_layer_to_layer(tmp_path, monkeypatch) -> None:
    """Closed form: layer i of n learns at the head's rate of the step times (encoder_lr / lr) * decay^(n - 1 - i)."""
    seen, step = [], torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    rates = {"lr": 2e-3, "encoder_lr": 5e-4, "layer_decay": 0.6, "warmup_steps": 2, "schedule": "cosine"}
    run = classifying(tmp_path, encoder=CONVNEXT, image_size=32, train="all", **rates)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    heads = [line["lr"] for line in lines if "lr" in line]
    assert len(seen) == len(heads) == 4
    assert heads[0] < heads[1] == 2e-3
    for head, groups in zip(heads, seen):
        expected = [head, *(head / 2e-3 * 5e-4 * 0.6 ** (4 - layer) for layer in range(5))]
        np.testing.assert_allclose(groups, expected, rtol=1e-12)


@register("blind_for_tests", dims=2)
def _blind(name: str, *, image_channels: int, guide: str) -> Encoder:
    """Sees the mean of 4 x 4 pixels and nothing else, until it learns to look."""
    encoder = TinyEncoder(name, 2, image_channels, guide)
    torch.nn.init.constant_(encoder.trunk[0].weight, 0.01)
    torch.nn.init.ones_(encoder.trunk[0].bias)
    return encoder


def test_a_tuned_encoder_learns_what_a_frozen_one_does_not_show(tmp_path) -> None:
    """Stripes two pixels wide, along one axis or the other: their means are the same."""
    along = 100.0 * (-1) ** np.arange(16)
    for kind, stripes in (("rows", along[:, None]), ("columns", along[None])):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(10):
            image = 128 + stripes + np.random.default_rng(i).normal(0, 8, (16, 16))
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "set" / kind / f"{i}.png")
    how = {"encoder": "random:blind_for_tests,guide=none", "head": "mlp", "max_steps": 40, "batch_size": 8,
           "lr": 1e-2, "schedule": "constant", "folds": 2, "val_every": 40, **QUIET}  # fmt: skip
    frozen, tuned = (
        losses(classify(str(tmp_path / "set"), out=str(tmp_path / train), train=train, encoder_lr=rate, **how))
        for train, rate in (("head", None), ("all", 1e-2))
    )
    assert tuned[0] == pytest.approx(frozen[0], rel=1e-5)  # both begin with the same head on the same features
    assert np.median(tuned[-8:]) < 0.1 < 0.3 < np.median(frozen[-8:])


def test_batch_norms_keep_their_statistics_and_nothing_is_dropped(tmp_path, last_kept) -> None:
    run = segmenting(tmp_path / "a", encoder=ENCODER, head="conv", features="last", train="all", augment=False)
    again = segmenting(tmp_path / "b", encoder=ENCODER, head="conv", features="last", train="all", augment=False)
    assert losses(run) == losses(again)
    before, after = load_encoder(ENCODER).state_dict(), load_head(run).models[0].encoder.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        keep_last(patch)
        return classifying(root, encoder=CONVNEXT, image_size=32, train="blocks=2", folds=2, bundle=True)


def test_every_fold_has_its_own_encoder_and_predicts_what_it_tested(folds, tmp_path) -> None:
    every = load_head(folds)
    assert every.models[0].encoder is not every.models[1].encoder
    assert "encoder fine-tuned (blocks=2)" in every.describe()
    first, second = (model.encoder.state_dict() for model in every.models)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    source = folds.parent / "set"
    with open(folds / "cases.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    for fold in (1, 2):
        out = predict(str(folds), [str(source)], out=str(tmp_path / str(fold)), fold=fold, **QUIET)
        with open(out / "predictions.csv", newline="") as file:
            told = {row["image"]: float(row["p_dark"]) for row in csv.DictReader(file)}
        for case in cases:
            if case["fold"] == str(fold):
                assert told[case["case"]] == pytest.approx(float(case["p_dark"]), abs=2e-5)
    image = source / "dark/3.png"
    one, two = (load_head(folds, fold=fold).predict(image).probabilities["dark"] for fold in (1, 2))
    assert every.predict(image).probabilities["dark"] == pytest.approx((one + two) / 2, abs=1e-6)
    out = evaluate(str(folds), [str(source)], out=str(tmp_path / "evaluated"), **QUIET)
    assert out.results["train"] == "blocks=2"
    assert "a trained head, applied as it is; encoder fine-tuned (blocks=2)" in (out / "report.html").read_text()


def test_a_bundle_is_whole_wherever_it_is_moved(folds, tmp_path) -> None:
    image = folds.parent / "set/dark/3.png"
    before = load_head(folds).predict(image).probabilities
    moved = Path(shutil.copytree(folds, tmp_path / "elsewhere"))
    for file in moved.glob("folds/*/head.json"):
        file.unlink()  # the head file explains itself
    assert load_head(moved).predict(image).probabilities == before
    untrained = load_encoder(CONVNEXT).state_dict()
    bundled = load_file(moved / "encoder.safetensors")  # as it was opened: the heads know what is theirs
    assert all(torch.equal(untrained[name], tensor) for name, tensor in bundled.items())


def test_a_stopped_tuning_goes_on_bit_by_bit(tmp_path, monkeypatch) -> None:
    how = {"size": (40, 48), "encoder": CONVNEXT, "head": "conv", "features": "last", "train": "blocks=2", "folds": 2,
           "max_steps": 4, "val_every": 2, "lr": 1e-2}  # fmt: skip
    whole = segmenting(tmp_path / "whole", **how)
    after_step, steps = HeadState.after_step, []

    def stopping(self, standing, *, due):
        steps.append(standing.step)
        if len(steps) == 7:  # in the second fold, whose encoder must begin as it was
            self.stop.requested = True
        after_step(self, standing, due=due)

    (tmp_path / "broken").mkdir()
    shutil.copytree(tmp_path / "whole/set", tmp_path / "broken/set")
    monkeypatch.setattr("tiny_runs.masked_set", lambda root, **_: root)
    with monkeypatch.context() as patch:
        patch.setattr(HeadState, "after_step", stopping)
        with pytest.raises(Stopped):
            segmenting(tmp_path / "broken", **how)
    run = segmenting(tmp_path / "broken", resume=True, **how)
    for fold in (1, 2):
        mine, other = (load_file(root / f"folds/{fold}/head.safetensors") for root in (run, whole))
        assert any(name.startswith(PREFIX) for name in mine)
        assert all(torch.equal(mine[name], other[name]) for name in other)
    assert (run / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()
    assert losses(run) == losses(whole)


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("segment", {"train": "blocks=1", "head": "linear"}, "--head linear is solved in closed form"),
        ("classify", {"train": "all", "head": "linear"}, "--head linear is solved from what a frozen encoder makes"),
        ("detect", {"train": "blocks=9"}, "encoder timm:test_convnext has 4 blocks or stages"),
        ("detect", {"train": "blocks=0"}, "--train blocks=0: expected head, all, or blocks=N"),
        ("classify", {"train": "some"}, "--train some: expected head, all, or blocks=N"),
        ("classify", {"encoder_lr": 1e-4}, "--encoder-lr: the encoder is frozen. Add --train"),
        ("classify", {"train": "all", "layer_decay": 1.5}, "--layer-decay 1.5: expected a number above 0 and up to 1"),
    ],
)
def test_wrong_options_are_explained(verb, options, message, tmp_path) -> None:
    make, usual = TASKS[verb]
    with pytest.raises(InputError) as error:
        make(tmp_path, **{"encoder": CONVNEXT, **usual, **options})
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_2d_encoder_of_a_slice_transfer_is_not_tuned(tmp_path) -> None:
    with pytest.raises(InputError, match="of a slice transfer the 2D encoder is frozen, and its blocks train"):
        segmenting(tmp_path, (8, 16, 16), encoder=f"slices:{ENCODER}", head="conv", train="all")
